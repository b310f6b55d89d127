import pytest

from torchtune_speech.evaluation import LANGUAGES, in_language, output_language

SENTENCES = {
    "de": "Die Katze schläft auf dem alten Tisch.",
    "en": "The cat sleeps on the old table.",
    "it": "Il gatto dorme sul vecchio tavolo.",
    "fr": "Le chat dort sur la vieille table.",
    "es": "El gato duerme sobre la mesa vieja.",
    "pt": "O gato dorme em cima da mesa velha.",
    "nl": "De kat slaapt op de oude tafel.",
    "ru": "Кошка спит на старом столе.",
    "zh": "猫睡在旧桌子上。",
    "ja": "猫は古いテーブルの上で寝ています。",
}


@pytest.mark.parametrize("lang", SENTENCES)
def test_sentences(lang):
    text = SENTENCES[lang]
    assert output_language(text) == lang
    assert output_language(text.upper()) == lang
    assert in_language(text, lang) is True
    others = [other for other in SENTENCES if other != lang]
    assert [in_language(text, other) for other in others] == [False] * len(others)


@pytest.mark.parametrize(
    "text",
    [
        *("", "...", "Berlin", "ja", "guten Tag", "12 30 45 60", "3 km, 4 km, 5 km"),
        *("Der Spiegel Verlag", "Università Degli Studi"),  # names are of every language
        *("花园", "三只狗", "im im im im im"),
    ],
)
def test_what_is_short_or_no_language_is_undecided(text):
    assert output_language(text) is None
    assert in_language(text, "de") is None


def test_chinese_and_japanese_go_by_script():
    assert output_language("我用 Python 写程序") == "zh"
    assert output_language("the word 狗 is Chinese for a dog") == "en"
    assert output_language("花园里有の狗坐在那边的") == "zh"  # one kana of eleven is below a tenth
    assert output_language("無料の本") == "ja"


def test_tags_and_languages_that_are_not_known():
    assert in_language(SENTENCES["zh"], "zh-Hant") is True
    assert in_language(SENTENCES["zh"], "yue") is True
    assert in_language(SENTENCES["de"], "de_CH") is True
    assert in_language(SENTENCES["de"], "sw") is None
    assert set(SENTENCES) < set(LANGUAGES)
