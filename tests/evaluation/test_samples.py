import pytest
from sacrebleu.metrics import CHRF

from torchtune_speech.errors import InputError
from torchtune_speech.evaluation import sample_scores, score, write_html


def row(task, target, prediction, lang="en", **fields):
    return {"task": task, "target": target, "prediction": prediction, "target_lang": lang} | fields


ROWS = [
    row("sqa", "The garden", "a green garden"),
    row("asr", "Red, green blue!", "red green"),
    row("st", "Der Hund sitzt im Garten.", "The dog sits in the garden.", "de"),
    row("asr", "uh", "yes yes", finish_reason="length"),
    row("st", "我爱你们大家", "我爱你们大", "zh"),
    row("sqa", "In May", "in may."),
]


def test_scores_in_the_order_of_rows():
    first, second, third, fourth, fifth, sixth = sample_scores(ROWS, "whisper")
    assert first == {"scores": {"f1": pytest.approx(2 / 3), "match": 0}, "flags": []}
    assert second == {"scores": {"wer": pytest.approx(1 / 3)}, "flags": []}
    expected = CHRF().sentence_score(ROWS[2]["prediction"], [ROWS[2]["target"]]).score
    assert third == {"scores": {"chrf": pytest.approx(expected)}, "flags": ["wrong_language"]}
    # Nothing was said, under this normaliser: two words too many.
    assert fourth == {"scores": {"wer": 2.0}, "flags": ["length"]}
    assert fifth["scores"]["chrf"] == pytest.approx(score(ROWS[4:5])["st"]["zh"]["chrf"], abs=1e-4)
    assert sixth == {"scores": {"f1": 1.0, "match": 1}, "flags": []}
    assert sample_scores(ROWS, "none")[1]["scores"]["wer"] == pytest.approx(2 / 3)


def test_rows_are_left_as_they_were():
    before = [dict(row) for row in ROWS]
    sample_scores(ROWS)
    assert before == ROWS
    with pytest.raises(InputError, match="no 'prediction'"):
        sample_scores([{"task": "asr", "target": "x"}])


def test_the_page_takes_them(tmp_path):
    rows = [{**row, **found} for row, found in zip(ROWS, sample_scores(ROWS), strict=True)]
    write_html(tmp_path / "report.html", score(rows), rows)
    assert "wrong_language" in (tmp_path / "report.html").read_text(encoding="utf-8")
