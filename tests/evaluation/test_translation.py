import math

import pytest

from torchtune_speech.errors import InputError
from torchtune_speech.evaluation import bleu_chrf, bleu_tokenizer


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
