import jiwer
import pytest
from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

from torchtune_speech.errors import InputError
from torchtune_speech.evaluation import (
    McifReference,
    bleu_chrf,
    mcif_rows,
    mcif_scores,
    read_mcif_reference,
)

REFERENCES = """<?xml version='1.0' encoding='utf-8'?>
<testset name="MCIF1.0">
  <task track="short" text_lang="de">
    <sample id="3,4, 5" iid="TRANS_12" task="TRANS">
      <audio_path>a.wav,b.wav,c.wav</audio_path>
      <reference>Guten Tag.
Das ist gut.</reference>
      <metadata>
        <transcript>Good day.
 That is good. </transcript>
      </metadata>
    </sample>
    <sample id="6" iid="QA_12_1" task="QA" qa_type="A" qa_origin="General">
      <audio_path>a.wav</audio_path>
      <reference>Nicht zu beantworten.</reference>
    </sample>
  </task>
  <task track="long" text_lang="de">
    <sample id="1" iid="S" task="SUM"><reference>Kurz.</reference></sample>
  </task>
</testset>
"""
TRANS = McifReference(
    "TRANS",
    "TRANS_12",
    ("3", "4", "5"),
    "Guten Tag.\nDas ist gut.",
    "Good day.\n That is good. ",
)
QA = McifReference(
    "QA", "QA_12_1", ("6",), "Nicht zu beantworten.", qa_type="A", qa_origin="General"
)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "ref.xml"
    path.write_text(REFERENCES, encoding="utf-8")
    return path


def test_references(path):
    assert read_mcif_reference(path, "short", "de") == [TRANS, QA]
    assert read_mcif_reference(path, "long") == [McifReference("SUM", "S", ("1",), "Kurz.")]
    with pytest.raises(InputError, match="several tasks .short/de, long/de"):
        read_mcif_reference(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('iid="QA_12_1" ', "", "sample 2 has no iid"),
        ('task="QA" ', "", "sample 2 has no task"),
        ('id="6" ', "", "sample 2 has no id"),
        ("Nicht zu beantworten.", "", r"sample 2 \(QA QA_12_1\) has no reference"),
        ('iid="QA_12_1" task="QA"', 'iid="TRANS_12" task="TRANS"', "no transcript for 1 of ref"),
        ("Good day.\n", "", "has 1 lines of transcript for 2 of reference"),
        ('id="6"', 'id="6,7"', "has 2 ids; write one"),
    ],
)
def test_bad_references(path, old, new, message):
    assert old in REFERENCES
    path.write_text(REFERENCES.replace(old, new), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_mcif_reference(path, "short", "de")


def test_the_same_item_twice(path):
    start = REFERENCES.index('    <sample id="6"')
    twice = REFERENCES[start : REFERENCES.index("  </task>")]
    path.write_text(REFERENCES[:start] + twice + REFERENCES[start:], encoding="utf-8")
    with pytest.raises(InputError, match=r"sample 3 .* earlier one \(QA, 'QA_12_1'\)"):
        read_mcif_reference(path, "short", "de")


# ---- scores -------------------------------------------------------------------------------------

ANSWERS = {"3": " Guten Tag. Das", "4": "ist", "5": "gut. ", "6": " Nein ", "99": "unused"}


def test_translation_and_answers():
    calls = []

    def comet(*columns):
        calls.append(columns)
        return 0.75

    def bertscore(*columns):
        calls.append(columns)
        return 0.5

    report = mcif_scores(ANSWERS, [TRANS, QA], "de", comet=comet, bertscore=bertscore)
    assert report["scores"] == {"TRANS-COMET": 0.75, "QA-BERTScore": 0.5}
    sources, predictions = ["Good day.", "That is good."], ["Guten Tag.", "Das ist gut."]
    assert calls == [
        (sources, predictions, ["Guten Tag.", "Das ist gut."]),
        (["Nein"], ["Nicht zu beantworten."], "de"),
    ]
    assert report["n"] == {"TRANS": 1, "QA": 1}
    assert report["notes"] == []
    assert report["details"]["TRANS"] == bleu_chrf(predictions, predictions, "de")
    assert report["lines"][1:] == [
        {
            "task": "TRANS",
            "iid": "TRANS_12",
            "line": 2,
            "source": "That is good.",
            "prediction": "Das ist gut.",
            "reference": "Das ist gut.",
        },
        {
            "task": "QA",
            "iid": "QA_12_1",
            "line": 1,
            "prediction": "Nein",
            "reference": "Nicht zu beantworten.",
        },
    ]


def test_scores_without_a_model_are_none():
    report = mcif_scores(ANSWERS, [TRANS, QA], "de")
    assert report["scores"] == {"TRANS-COMET": None, "QA-BERTScore": None}
    assert report["notes"] == [
        "TRANS-COMET: not computed, no COMET model was given",
        "QA-BERTScore: not computed, no BERTScore model was given",
    ]


def test_a_score_of_zero_is_a_score():
    report = mcif_scores(ANSWERS, [TRANS], "de", comet=lambda *_: 0)
    assert (report["scores"], report["notes"]) == ({"TRANS-COMET": 0.0}, [])


def test_chinese_is_cut_between_characters():
    item = McifReference("TRANS", "1", ("1", "2"), "你好。\n再见。", "Hello.\nBye.")
    report = mcif_scores({"1": "你好。再", "2": "见。"}, [item], "zh")
    assert [line["prediction"] for line in report["lines"]] == ["你好。", "再见。"]
    # By words the only cuts are before "你好。再", behind it and behind "见。".
    report = mcif_scores({"1": "你好。再", "2": "见。"}, [item], "de")
    assert [line["prediction"] for line in report["lines"]] != ["你好。", "再见。"]


ASR = [
    McifReference(
        "ASR", "1", ("0", "1"), "Mr. Smith isn't here. Twenty-five people are, uh, here!"
    ),
    McifReference("ASR", "2", ("2",), "The colour is 你好 grey."),
]
SPOKEN = {
    "0": "Mister Smith is not here",
    "1": "25 persons are here.",
    "2": "the color is 你 好 gray",
}


def test_word_error_rate_by_hand():
    report = mcif_scores(SPOKEN, ASR, "en")
    # "mister smith is not here 25 people are here" (9 words): people -> persons;
    # "the color is 你好 gray" (5): 你好 -> 你 and 好 inserted.
    assert report["scores"] == {"ASR-WER": 3 / 14}
    assert report["details"]["ASR"] == {
        "insertions": 1,
        "deletions": 0,
        "substitutions": 2,
        "reference_words": 14,
        "normalizer": "whisper",
    }
    assert report["lines"][0]["prediction"] == "mister smith is not here 25 persons are here"


@pytest.mark.parametrize(
    ("lang", "clean"), [("en", EnglishTextNormalizer()), ("de", BasicTextNormalizer())]
)
def test_word_error_rate_is_the_official_one(lang, clean):
    # Each answer by itself: "twenty" and "five" are 20 and 5; joined first they would be 25.
    texts = SPOKEN | {"0": "Mister (Smith is twenty", "1": "five) persons ", "2": "um "}
    references = [clean(item.reference) for item in ASR]
    predictions = [" ".join(clean(texts[id_]) for id_ in item.ids) for item in ASR]
    expected = jiwer.wer(references, predictions)
    assert mcif_scores(texts, ASR, lang)["scores"]["ASR-WER"] == pytest.approx(expected, abs=1e-12)
    assert expected > 0.5


def test_tasks_keep_the_names_of_the_file():
    items = [
        McifReference("ST", "1", ("1",), "a", "b"),
        McifReference("SQA", "1", ("2",), "a"),
        McifReference("SSUM", "1", ("3",), "a"),
        McifReference("ACHAP", "1", ("3",), "[]"),
    ]
    report = mcif_scores(dict.fromkeys("123", "a"), items, "it", bertscore=lambda p, r, lang: 1)
    assert report["scores"] == {"ST-COMET": None, "SQA-BERTScore": 1.0, "SSUM-BERTScore": 1.0}
    assert "ACHAP: no score, task unknown" in report["notes"]
    assert report["n"]["ACHAP"] == 1
    rows = mcif_rows(dict.fromkeys("123", "a"), items, "it")
    assert [row["task"] for row in rows] == ["st", "sqa", "summary"]  # chapters are no text


def test_a_missing_answer_is_named():
    with pytest.raises(InputError, match="no text for id '4' .and 2 more.; answer every sample"):
        mcif_scores({"3": "a"}, [TRANS, QA], "de")
    with pytest.raises(InputError, match="no text for id '6'; answer"):
        mcif_scores(dict.fromkeys("345", "a"), [TRANS, QA], "de")
    with pytest.raises(InputError, match="no item to score"):
        mcif_scores({}, [], "de")


def test_empty_answers_count():
    report = mcif_scores(dict.fromkeys("3456", ""), [TRANS, QA], "de", comet=lambda s, p, r: len(p))
    assert report["scores"]["TRANS-COMET"] == 2.0
    assert [line["prediction"] for line in report["lines"]] == ["", "", ""]
