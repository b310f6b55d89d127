import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchtune_speech.errors import InputError
from torchtune_speech.evaluation import bleu_chrf, format_table, sample_scores, score
from torchtune_speech.evaluation._bootstrap import bootstrap_intervals
from torchtune_speech.evaluation._sheet import make_sheets


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


def test_an_answer_counts_as_the_option_that_it_means():
    choices = ["Ann", "Bob Ray"]
    pairs = [
        ("Bob Ray", "B. Bob Ray"),
        ("B", "Bob Ray."),
        ("B. Bob Ray", "b"),
        ("Bob Ray", "A. Ann"),
        ("A", "B"),
        ("Ann", "B. Ann"),
        ("Not answerable.", "B. Bob Ray"),
        ("Bob Ray", "It was Bob"),
    ]
    rows = [row("sqa", *pair, choices=choices) for pair in pairs]
    assert [s["scores"]["match"] for s in sample_scores(rows)] == [1, 1, 1, 0, 0, 0, 0, 0]
    assert sample_scores(rows)[-1]["scores"]["f1"] == pytest.approx(2 / 5)
    assert score(rows)["answer_types"]["multiple choice"]["sqa"]["accuracy"] == 3 / 7
    assert score([row("sqa", "B. Bob", "Bob")])["sqa"]["accuracy"] == 0  # no choices, no letters
    with pytest.raises(InputError, match="row 0: choices is no list of texts"):
        score([row("sqa", "a", "a", choices="ab")])


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
        score(ROWS, normalizer="mss")


@settings(max_examples=20, deadline=None)
@given(st.permutations(ROWS))
def test_the_order_of_rows_does_not_matter(rows):
    assert score(rows) == score(ROWS)


def test_report_survives_json():
    report = score(ROWS)
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_error_rates_under_three_normalizers():
    rows = [row("asr", "The colour is 5 (five)", "the color is five!"), row("asr", "a b", "a b")]
    asr = score(rows, normalizer="basic")["asr"]
    rates = {name: rates["wer"] for name, rates in asr["normalizers"].items()}
    # none: of The colour is 5 (five) only "is" is right: 4 errors in 5 + 2 words. whisper: what is
    # in brackets falls, five is 5, and both are "the color is 5". mms: 5 falls, and of "the colour
    # is five" one word in 4 + 2 is wrong.
    assert rates == {"none": 4 / 7, "whisper": 0, "mms": 1 / 6}
    assert asr["normalizer"] == "basic"
    assert asr["wer"] == pytest.approx(2 / 7)  # color, and a word too few
    assert score(rows, normalizer="mms")["asr"]["wer"] == 1 / 6
    assert asr["normalizers"]["none"]["cer"] > 0
    assert set(asr["normalizers"]["mms"]["intervals"]) == {"wer", "cer"}


def test_marks_of_transcripts():
    rows = [
        row("asr", "Yes, it is.", "Yes it is.", domain="talks"),
        row("asr", "你好，世界。", "你好世界。", source_lang="zh", domain="news"),
        row("st", "Ja.", "Ja", "de", domain="talks"),
    ]
    report = score(rows)
    found = report["asr"]["marks"]
    assert found["punctuation"]["f1"] == 2 * 2 / (4 + 2) and found["punctuation"]["recall"] == 0.5
    # Either draw of one sample alone gives two thirds, too.
    assert found["punctuation"]["intervals"] == {"f1": [0.666667, 0.666667]}
    assert found["word_boundaries"]["f1"] == found["capitals"]["f1"] == 1
    assert report["asr"]["zh"]["marks"]["punctuation"]["recall"] == 0.5
    assert report["asr"]["zh"]["marks"]["word_boundaries"]["f1"] is None
    assert report["domains"]["talks"]["asr"]["marks"]["word_boundaries"]["f1"] == 1
    assert "marks" not in report["st"]["de"] and "rapidfuzz" in report["signatures"]["marks"]
    assert score([row("asr", "a", "a")] * 2)["asr"]["marks"]["capitals"]["intervals"] == {}


def test_marks_change_no_interval_of_another_score():
    words = "Yes, it is what one says of it.".split()
    rows = [
        row("asr", " ".join(words), " ".join(words[i % 5 :] + ["x", "No."] * (i % 3)))
        for i in range(40)
    ]
    (sheet,) = make_sheets(rows, "whisper", {})
    others = {name: s for name, s in sheet.scores.items() if not name.startswith("marks/")}
    assert len(others) == len(sheet.scores) - 3
    ranges = bootstrap_intervals(sheet.scores)
    assert {name: ranges[name] for name in others} == bootstrap_intervals(others)


def test_every_group_has_intervals_that_hold_its_scores():
    report = score(ROWS * 3)
    groups = [report["asr"], *report["st"].values(), report["sqa"], report["sqa"]["de"]]
    groups += [report["domains"]["talks"]["sqa"], report["answer_types"]["short span"]["sqa"]]
    for group in groups:
        names = {"wer", "cer", "bleu", "chrf", "ter", "accuracy", "f1", "adherence"}
        names |= {"containment", "unanswerable_accuracy", "answerable_accuracy"}
        assert set(group["intervals"]) == {name for name in names if group.get(name) is not None}
        for name, (low, high) in group["intervals"].items():
            assert low - 1e-3 <= group[name] <= high + 1e-3
    assert report["asr"]["intervals"]["wer"][0] < 0.25 < report["asr"]["intervals"]["wer"][1]
    assert "seed" in report["signatures"]["intervals"]


def test_intervals_and_ter_can_be_left_out():
    report = score(ROWS, intervals=False, ter=False)
    text = json.dumps(report)
    assert "intervals" not in text and '"ter"' not in text
    full = score(ROWS)
    assert report["asr"]["wer"] == full["asr"]["wer"]
    assert report["st"]["zh"]["bleu"] == full["st"]["zh"]["bleu"]


def test_language_asked_for():
    german, english = "Der Hund sitzt im Garten.", "The dog sits in the garden."
    rows = [
        row("st", german, german, "de"),
        row("st", german, english, "de"),
        row("st", german, "Hund", "de"),  # undecided
        row("st", german, "", "de"),  # nothing to decide
        row("asr", english, german),  # no matter of transcripts
        row("sqa", "无法回答。", "The answer is not given.", "zh"),
    ]
    report = score(rows)
    german = report["st"]["de"]
    assert (german["adherence"], german["adherence_n"], german["wrong_language"]) == (0.5, 2, 1)
    assert (report["sqa"]["adherence"], report["sqa"]["zh"]["wrong_language"]) == (0.0, 1)
    assert "adherence" not in report["asr"] and report["asr"]["wrong_language"] == 0
    assert report["wrong_language"] == 2
    assert "py3langid" in report["signatures"]["adherence"]
    assert score(rows[2:4])["st"]["de"]["adherence"] is None


def test_lengths_are_counted():
    long = "one two three four five"
    report = score([row("asr", long, f"{long} six " * 2), row("asr", long, "one two")])["asr"]
    assert (report["over_length"], report["under_length"]) == (1, 1)


def test_durations():
    rows = [
        row("asr", "a b", "a b", duration_s=2.0),
        row("asr", "a b", "a c", duration_s=4.5),
        row("asr", "a b", "x y", duration_s=31),
        row("st", "Guten Tag zusammen", "Guten Tag zusammen", "de", duration_s=7),
        row("mt", "Guten Tag zusammen", "Guten Tag zusammen", "de"),
    ]
    durations = score(rows)["durations"]
    assert list(durations) == ["0-5", "5-10", "30-"]
    assert durations["0-5"]["asr"]["wer"] == 0.25 and durations["0-5"]["asr"]["n"] == 2
    assert set(durations["5-10"]) == {"st"} and durations["5-10"]["st"]["de"]["n"] == 1
    assert durations["30-"]["asr"]["wer"] == 1.0
    assert "durations" not in score(rows, by=("task", "domain"))
    assert "durations" not in score(rows[-1:])


def test_answer_types():
    types = score(ROWS)["answer_types"]
    assert list(types) == ["unanswerable", "number/date", "short span"]
    assert types["unanswerable"]["sqa"]["accuracy"] == 1.0
    assert types["number/date"]["sqa"]["de"]["loops"] == 1
    assert set(types["short span"]) == {"sqa"}
    assert "answer_types" not in score(ROWS, by=("task", "duration"))
    assert "answer_types" not in score(ROWS[:5])
    refusal = score([row("qa", "Sin respuesta", "no", "es")], unanswerable={"es": "Sin respuesta"})
    assert list(refusal["answer_types"]) == ["unanswerable"]


# Levels of a report whose keys are names of tasks, languages, domains, ...
NAMES = re.compile(
    r"asr|st|mt|sqa|qa|emotion|[a-z]{2}(-[a-z]{2})?|none|whisper|mms|talks|news|\(none\)"
)


def documented_keys():
    schema = Path(__file__).parents[2] / "docs" / "report_schema.md"
    rows = [line for line in schema.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    return {key for line in rows for key in re.findall(r"`([^`]+)`", line.split("|")[1])}


def keys_of(value):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from keys_of(inner)


def test_every_field_is_documented():
    rows = [
        *ROWS,
        row("mt", "Guten Tag", "Guten Tag", "de", source_lang="fr", duration_s=3),
        row("mt", "Guten Tag", "Guten Tag", "de", scores={"comet": 0.8, "comet_free": 0.7}),
        row("sqa", "Rome", "Rome", scores={"bertscore": 0.9, "judge": 1.0}),
        row("asr", "ja", "ja", source_lang="de", duration_s=12),
        row("emotion", "happy", "sad"),
    ]
    report = score(rows)
    assert report["version"] == 2
    documented = documented_keys()
    written = set(keys_of(report)) - {key for key in keys_of(report) if NAMES.fullmatch(key)}
    assert written - documented == set()
    # Nothing is documented that is not written, but for what the recipe adds.
    assert documented - set(keys_of(report)) - {"asr", "st", "mt", "sqa", "qa"} == {
        *("predictions", "missing", "mcif", "5-10", "20-30", "30-", "yes/no", "multiple choice"),
        "sentence",
    }


def test_scores_that_rows_bring_along_are_averaged():
    rows = [
        row("st", "a b", "a b", "de", scores={"comet": 0.5, "chrf": 1.0}),
        row("st", "a b", "a b", "de", scores={"comet": 1.0}),
        row("st", "a b", "a b", "de"),
        row("sqa", "a", "b", scores={"judge": 1.0}),
    ]
    report = score(rows)
    assert report["st"]["de"]["comet"] == 0.75
    assert report["st"]["de"]["chrf"] == 100.0  # computed, not taken over
    assert report["st"]["de"]["intervals"]["comet"][0] == 0.5
    assert report["sqa"]["judge"] == 1.0 and report["sqa"]["en"]["judge"] == 1.0
    assert "COMET" in format_table(report) and "judge" in format_table(report)


def test_table():
    report = score(ROWS)
    lines = format_table(report).splitlines()
    table, footer = lines[: lines.index("")], lines[lines.index("") + 1 :]
    head, rule, *body = table
    assert (
        head.split()
        == (
            "part task language n WER none WER whisper WER mms CER BLEU chrF2 TER accuracy F1 "
            "unanswerable in language empty loops cut off 95 % interval"
        ).split()
    )
    assert set(rule) == {"-"}
    assert body[0].split()[:8] == "all asr all 2 1.000 0.250 0.250 0.300".split()
    assert body[0].endswith("WER 0.000-1.000")
    assert len(body) == 1 + 2 + 4 + (1 + 1 + 3) + (1 + 1 + 1) + 3
    # Numbers stand under the end of their heading.
    assert {line[: head.index("CER") + 3][-1] for line in body} <= set("0123456789-")
    assert {len(line) for line in table} == {len(head)}
    assert footer[0] == "normalizer: whisper"
    assert any(line.startswith("bleu zh:") for line in footer)


def test_table_shows_only_what_is_there():
    head = format_table(score([row("asr", "a", "a")])).splitlines()[0]
    assert "BLEU" not in head and "part" not in head and "long" not in head
    assert [name for name in ("none", "whisper", "mms") if f"WER {name}" in head] == [
        *("none", "whisper", "mms")
    ]


def test_table_shows_a_fourth_normalizer_and_lengths_if_there_are_any():
    rows = [row("asr", "one two three four five", "one two"), row("asr", "a", "a")]
    head, _, line = format_table(score(rows, normalizer="basic")).splitlines()[:3]
    assert head.split()[:4] == ["task", "language", "n", "WER"]
    assert head.split()[-4:] == ["short", "95", "%", "interval"]
    assert "WER none" in head and "long" not in head
    assert line.split()[-3] == "1"


def test_tasks_are_not_called_like_fields():
    with pytest.raises(InputError, match="task 'empty' is a field"):
        score([row("empty", "a", "b")])


def test_tasks_without_domains_are_not_repeated():
    rows = [row("sqa", "a", "a", domain="talks"), row("sqa", "b", "b"), row("asr", "c", "c")]
    domains = score(rows)["domains"]
    assert {name: list(groups) for name, groups in domains.items()} == {
        "talks": ["sqa"],
        "(none)": ["sqa"],
    }
