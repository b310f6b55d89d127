"""The words of the nano world, each with the German, Italian and Chinese form the grammar uses.

A line is one entry, its fields separated by `|`. Forms are already inflected for the only place in
which the grammar puts them, so that no morphology is needed anywhere.
"""

from dataclasses import dataclass

LANGUAGES = ("en", "de", "it", "zh")


@dataclass(frozen=True, slots=True)
class Subject:
    """A person with the article (nominative singular); `gender` is the Italian one, m or f."""

    en: str
    de: str
    it: str
    gender: str
    zh: str


@dataclass(frozen=True, slots=True)
class SubjectAdjective:
    """An adjective of persons: German weak nominative, Italian masculine and feminine singular."""

    en: str
    de: str
    it_m: str
    it_f: str
    zh: str


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb in the third person singular of the present; `base` is the English infinitive."""

    base: str
    en: str
    de: str
    it: str
    zh: str


@dataclass(frozen=True, slots=True)
class Thing:
    """An object in the plural (German accusative), with Italian gender and Chinese classifier."""

    en: str
    de: str
    it: str
    gender: str
    zh: str
    classifier: str


@dataclass(frozen=True, slots=True)
class ThingAdjective:
    """An adjective of things: German strong accusative plural, Italian plurals."""

    en: str
    de: str
    it_m: str
    it_f: str
    zh: str


@dataclass(frozen=True, slots=True)
class Phrase:
    """A number, place or time, the same wherever it stands."""

    en: str
    de: str
    it: str
    zh: str


def _table(entry_type: type, text: str) -> tuple:
    rows = [line.split("|") for line in text.strip().splitlines()]
    return tuple(entry_type(*(field.strip() for field in row)) for row in rows)


SUBJECTS: tuple[Subject, ...] = _table(
    Subject,
    """
    doctor      | der Arzt             | il medico      | m | 医生
    teacher     | die Lehrerin         | la maestra     | f | 老师
    farmer      | der Bauer            | il contadino   | m | 农民
    student     | der Student          | lo studente    | m | 学生
    painter     | der Maler            | il pittore     | m | 画家
    singer      | die Sängerin         | la cantante    | f | 歌手
    baker       | der Bäcker           | il fornaio     | m | 面包师
    nurse       | die Krankenschwester | l'infermiera   | f | 护士
    queen       | die Königin          | la regina      | f | 女王
    king        | der König            | il re          | m | 国王
    gardener    | der Gärtner          | il giardiniere | m | 园丁
    journalist  | der Journalist       | il giornalista | m | 记者
    """,
)

SUBJECT_ADJECTIVES: tuple[SubjectAdjective, ...] = _table(
    SubjectAdjective,
    """
    old      | alte        | anziano     | anziana     | 年老的
    young    | junge       | giovane     | giovane     | 年轻的
    tired    | müde        | stanco      | stanca      | 疲惫的
    happy    | glückliche  | felice      | felice      | 快乐的
    famous   | berühmte    | famoso      | famosa      | 著名的
    rich     | reiche      | ricco       | ricca       | 富有的
    friendly | freundliche | gentile     | gentile     | 友好的
    clever   | kluge       | intelligente | intelligente | 聪明的
    hungry   | hungrige    | affamato    | affamata    | 饥饿的
    quiet    | ruhige      | tranquillo  | tranquilla  | 安静的
    strong   | starke      | forte       | forte       | 强壮的
    lonely   | einsame     | solitario   | solitaria   | 孤独的
    polite   | höfliche    | educato     | educata     | 礼貌的
    elegant  | elegante    | elegante    | elegante    | 优雅的
    nervous  | nervöse     | nervoso     | nervosa     | 紧张的
    proud    | stolze      | orgoglioso  | orgogliosa  | 骄傲的
    """,
)

INTRANSITIVE_VERBS: tuple[Verb, ...] = _table(
    Verb,
    """
    wait    | waits    | wartet   | aspetta  | 等待
    sing    | sings    | singt    | canta    | 唱歌
    sleep   | sleeps   | schläft  | dorme    | 睡觉
    work    | works    | arbeitet | lavora   | 工作
    """,
)

TRANSITIVE_VERBS: tuple[Verb, ...] = _table(
    Verb,
    """
    buy      | buys      | kauft      | compra    | 买
    sell     | sells     | verkauft   | vende     | 卖
    find     | finds     | findet     | trova     | 找到
    paint    | paints    | malt       | dipinge   | 画
    """,
)

NUMBERS: tuple[Phrase, ...] = _table(
    Phrase,
    """
    two    | zwei    | due     | 两
    three  | drei    | tre     | 三
    four   | vier    | quattro | 四
    five   | fünf    | cinque  | 五
    six    | sechs   | sei     | 六
    seven  | sieben  | sette   | 七
    eight  | acht    | otto    | 八
    nine   | neun    | nove    | 九
    ten    | zehn    | dieci   | 十
    eleven | elf     | undici  | 十一
    twelve | zwölf   | dodici  | 十二
    twenty | zwanzig | venti   | 二十
    """,
)

THING_ADJECTIVES: tuple[ThingAdjective, ...] = _table(
    ThingAdjective,
    """
    red       | rote       | rossi     | rosse     | 红色的
    green     | grüne      | verdi     | verdi     | 绿色的
    blue      | blaue      | blu       | blu       | 蓝色的
    yellow    | gelbe      | gialli    | gialle    | 黄色的
    black     | schwarze   | neri      | nere      | 黑色的
    white     | weiße      | bianchi   | bianche   | 白色的
    heavy     | schwere    | pesanti   | pesanti   | 沉重的
    cheap     | billige    | economici | economiche | 便宜的
    expensive | teure      | costosi   | costose   | 昂贵的
    broken    | kaputte    | rotti     | rotte     | 坏的
    strange   | seltsame   | strani    | strane    | 奇怪的
    small     | kleine     | piccoli   | piccole   | 小
    dirty     | schmutzige | sporchi   | sporche   | 脏
    modern    | moderne    | moderni   | moderne   | 现代的
    round     | runde      | rotondi   | rotonde   | 圆
    purple    | violette   | viola     | viola     | 紫色的
    brown     | braune     | marroni   | marroni   | 棕色的
    tiny      | winzige    | minuscoli | minuscole | 微小的
    wet       | nasse      | bagnati   | bagnate   | 湿
    golden    | goldene    | dorati    | dorate    | 金色的
    useful    | nützliche  | utili     | utili     | 有用的
    thick     | dicke      | spessi    | spesse    | 厚
    beautiful | schöne     | belli     | belle     | 美丽的
    square    | quadratische | quadrati | quadrate  | 方形的
    silver    | silberne   | argentati | argentate | 银色的
    """,
)

THINGS: tuple[Thing, ...] = _table(
    Thing,
    """
    apples     | Äpfel        | mele       | f | 苹果 | 个
    books      | Bücher       | libri      | m | 书   | 本
    flowers    | Blumen       | fiori      | m | 花   | 朵
    letters    | Briefe       | lettere    | f | 信   | 封
    boxes      | Kisten       | scatole    | f | 箱子 | 个
    chairs     | Stühle       | sedie      | f | 椅子 | 把
    candles    | Kerzen       | candele    | f | 蜡烛 | 支
    bottles    | Flaschen     | bottiglie  | f | 瓶子 | 个
    shoes      | Schuhe       | scarpe     | f | 鞋子 | 只
    hats       | Hüte         | cappelli   | m | 帽子 | 顶
    keys       | Schlüssel    | chiavi     | f | 钥匙 | 把
    pictures   | Bilder       | quadri     | m | 图画 | 幅
    tickets    | Fahrkarten   | biglietti  | m | 票   | 张
    baskets    | Körbe        | cesti      | m | 篮子 | 个
    carpets    | Teppiche     | tappeti    | m | 地毯 | 块
    guitars    | Gitarren     | chitarre   | f | 吉他 | 把
    umbrellas  | Regenschirme | ombrelli   | m | 雨伞 | 把
    mirrors    | Spiegel      | specchi    | m | 镜子 | 面
    lamps      | Lampen       | lampade    | f | 台灯 | 盏
    cups       | Tassen       | tazze      | f | 杯子 | 个
    knives     | Messer       | coltelli   | m | 刀   | 把
    newspapers | Zeitungen    | giornali   | m | 报纸 | 份
    blankets   | Decken       | coperte    | f | 毯子 | 条
    bicycles   | Fahrräder    | biciclette | f | 自行车 | 辆
    watches    | Uhren        | orologi    | m | 手表 | 块
    shirts     | Hemden       | camicie    | f | 衬衫 | 件
    pencils    | Bleistifte   | matite     | f | 铅笔 | 支
    balloons   | Ballons      | palloncini | m | 气球 | 个
    spoons     | Löffel       | cucchiai   | m | 勺子 | 把
    tables     | Tische       | tavoli     | m | 桌子 | 张
    coats      | Mäntel       | cappotti   | m | 大衣 | 件
    pillows    | Kissen       | cuscini    | m | 枕头 | 个
    drums      | Trommeln     | tamburi    | m | 鼓   | 面
    plates     | Teller       | piatti     | m | 盘子 | 个
    ropes      | Seile        | corde      | f | 绳子 | 条
    ladders    | Leitern      | scale      | f | 梯子 | 架
    rings      | Ringe        | anelli     | m | 戒指 | 枚
    maps       | Landkarten   | mappe      | f | 地图 | 张
    buckets    | Eimer        | secchi     | m | 水桶 | 个
    bells      | Glocken      | campane    | f | 铃铛 | 个
    toys       | Spielzeuge   | giocattoli | m | 玩具 | 个
    gloves     | Handschuhe   | guanti     | m | 手套 | 只
    """,
)

PLACES: tuple[Phrase, ...] = _table(
    Phrase,
    """
    at the station     | am Bahnhof         | alla stazione      | 在车站
    in the garden      | im Garten          | in giardino        | 在花园里
    in the kitchen     | in der Küche       | in cucina          | 在厨房里
    at the market      | auf dem Markt      | al mercato         | 在市场
    in the library     | in der Bibliothek  | in biblioteca      | 在图书馆
    on the beach       | am Strand          | in spiaggia        | 在海滩上
    near the river     | nahe dem Fluss     | vicino al fiume    | 在河边
    behind the church  | hinter der Kirche  | dietro la chiesa   | 在教堂后面
    in the forest      | im Wald            | nel bosco          | 在森林里
    at the airport     | am Flughafen       | all'aeroporto      | 在机场
    in the hospital    | im Krankenhaus     | in ospedale        | 在医院里
    in the office      | im Büro            | in ufficio         | 在办公室里
    on the bridge      | auf der Brücke     | sul ponte          | 在桥上
    in the castle      | im Schloss         | nel castello       | 在城堡里
    at the theater     | im Theater         | a teatro           | 在剧院
    in the museum      | im Museum          | al museo           | 在博物馆里
    at the harbor      | am Hafen           | al porto           | 在港口
    in the village     | im Dorf            | nel villaggio      | 在村子里
    on the mountain    | auf dem Berg       | sulla montagna     | 在山上
    on the roof        | auf dem Dach       | sul tetto          | 在屋顶上
    under the tree     | unter dem Baum     | sotto l'albero     | 在树下
    behind the house   | hinter dem Haus    | dietro la casa     | 在房子后面
    near the school    | nahe der Schule    | vicino alla scuola | 在学校附近
    near the hotel     | nahe dem Hotel     | vicino all'hotel   | 在酒店附近
    in the cellar      | im Keller          | in cantina         | 在地下室里
    on the island      | auf der Insel      | sull'isola         | 在岛上
    under the tent     | unter dem Zelt     | sotto la tenda     | 在帐篷下
    at the bank        | in der Bank        | in banca           | 在银行
    on the train       | im Zug             | sul treno          | 在火车上
    near the fountain  | nahe dem Brunnen   | vicino alla fontana | 在喷泉旁边
    behind the factory | hinter der Fabrik  | dietro la fabbrica | 在工厂后面
    in the desert      | in der Wüste       | nel deserto        | 在沙漠里
    at the stadium     | im Stadion         | allo stadio        | 在体育场
    in the park        | im Park            | nel parco          | 在公园里
    at the lake        | am See             | al lago            | 在湖边
    in the valley      | im Tal             | nella valle        | 在山谷里
    in the tunnel      | im Tunnel          | nel tunnel         | 在隧道里
    behind the wall    | hinter der Mauer   | dietro il muro     | 在墙后面
    in the restaurant  | im Restaurant      | al ristorante      | 在餐厅里
    in the prison      | im Gefängnis       | in prigione        | 在监狱里
    on the ship        | auf dem Schiff     | sulla nave         | 在船上
    near the volcano   | nahe dem Vulkan    | vicino al vulcano  | 在火山附近
    in the cave        | in der Höhle       | nella grotta       | 在洞穴里
    in the laboratory  | im Labor           | in laboratorio     | 在实验室里
    at the border      | an der Grenze      | al confine         | 在边境
    near the waterfall | nahe dem Wasserfall | vicino alla cascata | 在瀑布附近
    in the mine        | in der Mine        | nella miniera      | 在矿山里
    """,
)

TIMES: tuple[Phrase, ...] = _table(
    Phrase,
    """
    today           | heute               | oggi               | 今天
    tonight         | heute Abend         | stasera            | 今晚
    every morning   | jeden Morgen        | ogni mattina       | 每天早上
    every evening   | jeden Abend         | ogni sera          | 每天晚上
    every day       | jeden Tag           | ogni giorno        | 每天
    every week      | jede Woche          | ogni settimana     | 每周
    every year      | jedes Jahr          | ogni anno          | 每年
    every summer    | jeden Sommer        | ogni estate        | 每年夏天
    every winter    | jeden Winter        | ogni inverno       | 每年冬天
    every spring    | jeden Frühling      | ogni primavera     | 每年春天
    every autumn    | jeden Herbst        | ogni autunno       | 每年秋天
    every Monday    | jeden Montag        | ogni lunedì        | 每星期一
    every Tuesday   | jeden Dienstag      | ogni martedì       | 每星期二
    every Wednesday | jeden Mittwoch      | ogni mercoledì     | 每星期三
    every Thursday  | jeden Donnerstag    | ogni giovedì       | 每星期四
    every Friday    | jeden Freitag       | ogni venerdì       | 每星期五
    every Saturday  | jeden Samstag       | ogni sabato        | 每星期六
    every Sunday    | jeden Sonntag       | ogni domenica      | 每星期天
    every January   | jeden Januar        | ogni gennaio       | 每年一月
    every April     | jeden April         | ogni aprile        | 每年四月
    every August    | jeden August        | ogni agosto        | 每年八月
    every October   | jeden Oktober       | ogni ottobre       | 每年十月
    after lunch     | nach dem Mittagessen | dopo pranzo       | 午饭后
    after work      | nach der Arbeit     | dopo il lavoro     | 下班后
    after midnight  | nach Mitternacht    | dopo mezzanotte    | 午夜后
    before noon     | vor Mittag          | prima di mezzogiorno | 中午前
    before dinner   | vor dem Abendessen  | prima di cena      | 晚饭前
    before sunrise  | vor Sonnenaufgang   | prima dell'alba    | 日出前
    """,
)

QUESTION_WORDS: tuple[Phrase, ...] = _table(
    Phrase,
    """
    who      | wer       | chi      | 谁
    where    | wo        | dove     | 在哪里
    when     | wann      | quando   | 什么时候
    what     | was       | che cosa | 什么
    how many | wie viele | quanti   | 多少
    how many | wie viele | quante   | 多少
    """,
)

TABLES = (
    SUBJECTS,
    SUBJECT_ADJECTIVES,
    INTRANSITIVE_VERBS,
    TRANSITIVE_VERBS,
    NUMBERS,
    THING_ADJECTIVES,
    THINGS,
    PLACES,
    TIMES,
)
