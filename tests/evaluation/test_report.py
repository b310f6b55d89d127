import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchtune_speech.errors import InputError
from torchtune_speech.evaluation import bleu_chrf, format_table, score


def row(task, target, prediction, lang="en", **fields):
    return {"task": task, "target": target, "prediction": prediction, "target_lang": lang} | fields


ROWS = [
    row("asr", "red green blue", "Red, green, blue.", domain="talks"),
    row("asr", "yellow", "grey", domain="news", finish_reason="stop"),
    row("st", "Der Hund sitzt im Garten.", "Der Hund sitzt im Garten.", "de", domain="talks"),
    row("st", "Die Katze schläft.", "", "de", domain="talks"),
    row("st", "我爱你们大家", "我爱你们大", "zh", domain="news"),
    row("sqa", "The garden", "garden", domain="talks"),
    row("sqa", "无法回答。", "无法回答", "zh", domain="talks"),
    row("sqa", "Im Mai", "im " * 20, "de", domain="news", finish_reason="length"),
]


def test_report_by_hand():
    report = score(ROWS)
    assert report["asr"]["wer"] == 1 / 4
    assert report["asr"]["n"] == 2
    assert "en" not in report["asr"]  # all of it is English
    assert set(report["st"]) == {"de", "zh"}
    expected = bleu_chrf(
        [r["target"] for r in ROWS[2:4]], [r["prediction"] for r in ROWS[2:4]], "de"
    )
    assert report["st"]["de"]["bleu"] == expected["bleu"]
    assert report["st"]["de"]["chrf"] == expected["chrf"]
    assert (report["st"]["de"]["n"], report["st"]["de"]["empty"]) == (2, 1)
    assert report["st"]["zh"]["bleu"] == pytest.approx(81.873, abs=1e-3)
    assert report["sqa"]["accuracy"] == pytest.approx(2 / 3)
    assert report["sqa"]["unanswerable_accuracy"] == 1.0
    assert report["sqa"]["zh"]["accuracy"] == 1.0
    assert report["sqa"]["de"]["loops"] == 1
    assert report["sqa"]["loops"] == 1
    assert (report["empty"], report["loops"], report["length_finishes"]) == (1, 1, 1)
    assert report["n"] == {"asr": 2, "st": 3, "sqa": 3}
    assert report["normalizer"] == report["asr"]["normalizer"] == "whisper"
    assert report["notes"] == []


def test_domains_are_scored_on_their_own():
    domains = score(ROWS)["domains"]
    assert set(domains) == {"talks", "news"}
    assert domains["talks"]["asr"]["wer"] == 0.0
    assert domains["news"]["asr"]["wer"] == 1.0
    assert set(domains["talks"]["st"]) == {"de"}
    assert domains["news"]["sqa"]["de"]["length_finishes"] == 1
    assert "domains" not in score([row("asr", "a", "a")])


def test_signatures_name_normalizer_and_tokenizers():
    report = score(ROWS, normalizer="basic")
    assert "norm:basic" in report["signatures"]["wer"]
    assert "level:corpus" in report["signatures"]["wer"]
    assert "tok:13a" in report["signatures"]["bleu"]["de"]
    assert "tok:zh" in report["signatures"]["bleu"]["zh"]
    assert "chrf" in report["signatures"] and "qa" in report["signatures"]
    assert "bleu_signature" not in json.dumps(report)


def test_languages_of_speech():
    rows = [
        row("asr", "colour", "color", source_lang="en"),
        # What was said is German, whatever the default of target_lang says.
        row("asr", "colour", "color", source_lang="de"),
    ]
    report = score(rows)["asr"]
    assert report["wer"] == 0.5
    assert (report["en"]["wer"], report["de"]["wer"]) == (0.0, 1.0)


def test_several_source_languages_are_told_apart():
    rows = [
        row("mt", "Hallo du da drüben", "Hallo du da drüben", "de", source_lang="en"),
        row("mt", "Hallo du da drüben", "x", "de", source_lang="fr"),
        row("mt", "Ciao a tutti voi", "Ciao a tutti voi", "it", source_lang="en"),
    ]
    report = score(rows)["mt"]
    assert set(report) == {"en-de", "fr-de", "it"}
    assert report["en-de"]["bleu"] == report["it"]["bleu"] == 100.0


def test_parts_can_be_left_out():
    report = score(ROWS, by=("task",))
    assert "domains" not in report
    assert "zh" not in report["sqa"]
    assert set(report["st"]) == {"de", "zh"}  # one BLEU over languages would mean nothing


def test_unknown_tasks_are_scored_like_qa_and_noted():
    report = score([row("emotion", "happy", "Happy!"), row("emotion", "sad", "glad")])
    assert report["emotion"]["accuracy"] == 0.5
    assert "'emotion'" in report["notes"][0] and "qa" in report["notes"][0]
    assert report["notes"][0] in format_table(report)


def test_a_loop_in_the_reference_too_is_no_fault():
    digits = "zero " * 12
    assert score([row("asr", digits, digits)])["loops"] == 0


def test_languages_default_to_english():
    assert score([{"task": "sqa", "target": "a dog", "prediction": "dog"}])["sqa"]["en"]["n"] == 1


def test_bad_rows_and_arguments_are_refused():
    with pytest.raises(InputError, match="no row"):
        score([])
    with pytest.raises(InputError, match="'u7' has no 'target'"):
        score([{"id": "u7", "task": "asr", "prediction": "x"}])
    with pytest.raises(InputError, match="'speaker'"):
        score(ROWS, by=("task", "speaker"))
    with pytest.raises(InputError, match="unknown name"):
        score(ROWS, normalizer="mms")


@settings(max_examples=20, deadline=None)
@given(st.permutations(ROWS))
def test_the_order_of_rows_does_not_matter(rows):
    assert score(rows) == score(ROWS)


def test_report_survives_json():
    report = score(ROWS)
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_table():
    report = score(ROWS)
    lines = format_table(report).splitlines()
    table, footer = lines[: lines.index("")], lines[lines.index("") + 1 :]
    head, rule, *body = table
    assert (
        head.split()
        == (
            "domain task language n WER CER BLEU chrF2 accuracy F1 unanswerable empty loops cut off"
        ).split()
    )
    assert set(rule) == {"-"}
    assert body[0].split()[:5] == ["all", "asr", "all", "2", "0.250"]
    assert len(body) == 1 + 2 + 4 + (1 + 1 + 3) + (1 + 1 + 1)
    # Numbers stand under the end of their heading.
    assert {line[: head.index("WER") + 3][-1] for line in body} <= set("0123456789-")
    assert {len(line) for line in table} == {len(head)}
    assert footer[0] == "normalizer: whisper"
    assert any(line.startswith("bleu zh:") for line in footer)


def test_table_shows_only_what_is_there():
    head = format_table(score([row("asr", "a", "a")])).splitlines()[0]
    assert "BLEU" not in head and "domain" not in head
