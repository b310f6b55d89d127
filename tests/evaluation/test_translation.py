import json
import math
import subprocess
import sys

import pytest

from torchtune_speech.errors import InputError
from torchtune_speech.evaluation import bleu_chrf, bleu_tokenizer, score
from torchtune_speech.evaluation._translation import translation_statistics

GERMAN = [
    ("Der Hund sitzt im Garten.", "Der große Hund sitzt in dem Garten."),
    ("Die Katze schläft auf dem alten Tisch.", "Auf dem alten Tisch schläft die Katze!"),
    ("Es regnet heute, sagte er.", "es regnet heute sagte er"),
    ("Wir kommen im Mai.", ""),
]
CHINESE = [
    ("我爱你们大家，谢谢。", "我爱你们，谢谢大家。"),
    ("狗坐在花园里。", "花园里坐着一只狗。"),
    ("他在 Google 工作了 3 年。", "他在Google工作3年。"),
]


def scores_of(pairs, lang):
    references, predictions = zip(*pairs, strict=True)
    statistics, signatures = translation_statistics(references, predictions, lang)
    return {name: statistic.score() for name, statistic in statistics.items()}, signatures


@pytest.mark.parametrize(
    ("pairs", "lang", "options"),
    [
        (GERMAN, "de", []),
        (CHINESE, "zh", ["--tokenize", "zh", "--ter-normalized", "--ter-asian-support"]),
    ],
)
def test_scores_are_those_of_the_command_line(pairs, lang, options, tmp_path):
    for name, texts in zip(("reference", "prediction"), zip(*pairs, strict=True), strict=True):
        (tmp_path / name).write_text("".join(f"{t}\n" for t in texts), encoding="utf-8")
    command = [sys.executable, "-m", "sacrebleu", "reference", "-i", "prediction"]
    command += ["-m", "bleu", "chrf", "ter", "-w", "6", *options]
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    expected = {entry["name"]: entry for entry in json.loads(out.stdout)}
    assert set(expected) == {"BLEU", "chrF2", "TER"}
    found, signatures = scores_of(pairs, lang)
    for ours, theirs in (("bleu", "BLEU"), ("chrf", "chrF2"), ("ter", "TER")):
        assert 0 < found[ours] < 100
        assert found[ours] == pytest.approx(expected[theirs]["score"], abs=2e-6)
        assert signatures[ours] == expected[theirs]["signature"]
    rows = [
        {"task": "st", "target": target, "prediction": prediction, "target_lang": lang}
        for target, prediction in pairs
    ]
    report = score(rows, intervals=False)
    assert report["st"][lang]["ter"] == pytest.approx(found["ter"], abs=1e-4)
    assert report["signatures"]["ter"] == {lang: signatures["ter"]}


def test_ter_by_hand():
    # Without case, and "garten." is one word: "in" for "im", and "den" too many.
    assert scores_of([("Ich sitze im Garten.", "ich sitze in den garten.")], "de")[0][
        "ter"
    ] == pytest.approx(100 * 2 / 4)
    # Two blocks that moved are one edit each.
    moved = [("heute sitzt der Hund im Garten", "der Hund im Garten sitzt heute")]
    assert scores_of(moved, "de")[0]["ter"] == pytest.approx(100 * 2 / 6)
    # One character of seven, the full stop counted.
    assert scores_of([("狗坐在花园里。", "猫坐在花园里。")], "zh")[0]["ter"] == pytest.approx(
        100 / 7
    )
    assert "asian:yes" in scores_of(CHINESE, "zh-CN")[1]["ter"]
    assert "asian:no" in scores_of(GERMAN, "de")[1]["ter"]


def test_german_by_hand():
    # tokens (13a): Der Hund sitzt im Garten .  against  Der Hund sitzt Garten .
    precisions = 5 / 5, 3 / 4, 1 / 3, 1 / (2 * 2)  # no 4-gram matches: half of one in two
    expected = 100 * math.exp(1 - 6 / 5) * math.prod(precisions) ** (1 / 4)
    result = bleu_chrf(["Der Hund sitzt im Garten."], ["Der Hund sitzt Garten."], "de")
    assert result["bleu"] == pytest.approx(expected, abs=1e-3)
    assert "tok:13a" in result["bleu_signature"]


def test_chinese_is_cut_into_characters():
    # Five of six characters in order: all precisions are 1, only the brevity penalty is left.
    result = bleu_chrf(["我爱你们大家"], ["我爱你们大"], "zh")
    assert result["bleu"] == pytest.approx(100 * math.exp(1 - 6 / 5), abs=1e-3)
    assert "tok:zh" in result["bleu_signature"]
    assert bleu_chrf(["我爱你们大家"], ["我爱你们大"], "de")["bleu"] == 0.0


@pytest.mark.parametrize(
    ("lang", "tokenizer"),
    [("zh", "zh"), ("zh-CN", "zh"), ("zh_TW", "zh"), ("de", "13a"), ("it", "13a"), ("ja", "char")],
)
def test_only_chinese_is_tokenized_as_chinese(lang, tokenizer):
    assert bleu_tokenizer(lang) == tokenizer
    signature = bleu_chrf(["a b c d"], ["a b c d"], lang)["bleu_signature"]
    assert f"tok:{tokenizer}|" in signature


def test_bleu_is_of_the_corpus():
    references = ["a b c d e f g h", "i j k l"]
    perfect_and_wrong = bleu_chrf(references, ["a b c d e f g h", "w x y z"], "de")
    precisions = 8 / 12, 7 / 10, 6 / 8, 5 / 6
    assert perfect_and_wrong["bleu"] == pytest.approx(100 * math.prod(precisions) ** 0.25, abs=1e-3)


def test_chrf():
    assert bleu_chrf(["abc def"], ["abc def"], "it")["chrf"] == 100.0
    assert bleu_chrf(["abc def"], ["xyz"], "it")["chrf"] == 0.0
    assert "nc:6|nw:0" in bleu_chrf(["a"], ["a"], "it")["chrf_signature"]


def test_empty_predictions_score_zero():
    result = bleu_chrf(["Der Hund sitzt im Garten."], [""], "de")
    assert (result["bleu"], result["chrf"]) == (0.0, 0.0)


def test_unequal_or_no_texts_are_refused():
    with pytest.raises(InputError):
        bleu_chrf(["a"], [], "de")
    with pytest.raises(InputError):
        bleu_chrf([], [], "de")


@pytest.mark.parametrize("tag", ["cmn", "zho_Hans", "cmn_hans_cn", "zh-TW"])
def test_chinese_by_any_tag(tag):
    texts = ["我今天去图书馆看书。"], ["我今天去图书馆。"]
    assert bleu_chrf(*texts, tag) == bleu_chrf(*texts, "zh")
