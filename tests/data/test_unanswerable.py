"""Questions that nothing answers, made of those that are there."""

import dataclasses
import json

import pytest
from tiny_world import SENTENCES, make_data, make_llm, make_tokenizer

from torchtune_speech.data import (
    AudioCut,
    PromptTemplates,
    Sample,
    _unanswerable,
    data_fingerprint,
    text_twin,
    unanswerable_samples,
    word_overlap,
)
from torchtune_speech.datasets import speech_dataset
from torchtune_speech.errors import InputError

PROMPTS = PromptTemplates.from_yaml("nle_2026")
FIRST = ["river", "castle", "engine", "violin", "parliament", "glacier", "harvest", "telescope"]
SECOND = ["flows", "burns", "starts", "sounds", "votes", "melts", "begins", "turns"]
SAMPLES = [
    Sample(
        f"{i}-{lang}", "sqa", "yes", (AudioCut(f"{i}.wav"),), target_lang=lang,
        source_text=f"The {first} {second} with this that.", question=f"{lang}: is it {first}?",
    )
    for i, (first, second) in enumerate(zip(FIRST, SECOND, strict=True))
    for lang in ("en", "de")
]  # fmt: skip
LOOSE = {"max_overlap": 0.5}


def base_of(made):
    return next(s for s in SAMPLES if s.id == made.id.removesuffix("~unanswerable"))


def test_a_question_of_another_recording_in_the_same_language():
    made = unanswerable_samples(SAMPLES, PROMPTS, share=1, **LOOSE)
    assert {m.id for m in made} == {f"{s.id}~unanswerable" for s in SAMPLES}
    for m in made:
        base = base_of(m)
        (asker,) = (s for s in SAMPLES if s.question == m.question)
        assert asker.target_lang == base.target_lang and asker.audio != base.audio
        assert m.target == PROMPTS.unanswerable(base.target_lang)
        kept = {f.name for f in dataclasses.fields(Sample)} - {"id", "question", "target"}
        assert all(getattr(m, name) == getattr(base, name) for name in kept)
        assert text_twin(m).target == m.target and text_twin(m).question == m.question
        assert PROMPTS.messages(m)[-1].content[0]["content"] == m.target


def test_shares():
    made = unanswerable_samples(SAMPLES, PROMPTS, share=0.5, generic=0.25, **LOOSE)
    assert len(made) == len({m.id for m in made}) == 8
    generic = [m for m in made if m.question in PROMPTS.generic_questions(m.target_lang)]
    assert len(generic) == 2
    only = unanswerable_samples(SAMPLES, PROMPTS, share=1, generic=1)
    assert len(only) == 16 and len({m.question for m in only}) > 8
    for m in only:
        assert m.question in PROMPTS.generic_questions(m.target_lang)


def test_the_choice_is_the_seed_s():
    made = unanswerable_samples(SAMPLES, PROMPTS, share=0.25, generic=0.5, **LOOSE, seed=3)
    # Pinned: a run that resumes elsewhere must see the rows it began with.
    assert [(m.id.removesuffix("~unanswerable"), m.question) for m in made] == [
        ("3-de", "Wie viel hat die Fahrkarte gekostet?"),
        ("4-de", "Wer hat den Regenschirm verloren?"),
        ("4-en", "en: is it telescope?"),
        ("1-en", "en: is it river?"),
    ]
    other = unanswerable_samples(SAMPLES, PROMPTS, share=0.25, generic=0.5, **LOOSE, seed=4)
    assert [m.id for m in other] != [m.id for m in made]


def test_overlap_of_words():
    assert word_overlap("The river flows.", "the RIVER, dried up") == 1 / 3  # river flows dried
    assert word_overlap("it is so", "it is so") == 0  # short words say nothing
    assert word_overlap("河流很长", "河流") == 0.5
    assert word_overlap("", "") == 0


def question(name, transcript, asked, **fields):
    fields = {"audio": (AudioCut(f"{name}.wav"),), "source_text": transcript} | fields
    return Sample(name, "sqa", "yes", question=asked, **fields)


ALIKE = "Parliament votes about rivers"
FAR = "Painters sleep under mountains"


@pytest.mark.parametrize(
    ("one", "two", "fits"),
    [
        ({}, {}, True),
        ({}, {"source_text": ALIKE + " tomorrow"}, False),
        # The same recording, by its file or by what is said.
        ({}, {"audio": (AudioCut("1.wav", 60.0, 5.0),)}, False),
        ({"source_text": "So it is."}, {"source_text": "So it is."}, False),
        # Without a transcript the questions decide.
        ({"source_text": None}, {}, True),
        ({"source_text": None}, {"question": "When does parliament vote?"}, False),
        # A question that the recording is asked already.
        ({}, {"question": "When will parliament vote?"}, False),
        ({}, {"target_lang": "de"}, False),
        ({}, {"extra": {"instruction": "Which peak?"}}, False),
        ({}, {"question": None}, False),
        ({}, {"task": "qa", "audio": ()}, True),
    ],
)
def test_who_may_be_asked_what(one, two, fits):
    first = question("1", ALIKE, "When will parliament vote?")
    second = question("2", FAR, "Which peak?")
    pair = [dataclasses.replace(first, **one), dataclasses.replace(second, **two)]
    if not fits:
        with pytest.raises(InputError, match="none could be made of . question"):
            unanswerable_samples(pair, PROMPTS, share=1)
        return
    made = unanswerable_samples(pair, PROMPTS, share=1)
    assert {m.id: m.question for m in made} == {
        "1~unanswerable": pair[1].question,
        "2~unanswerable": pair[0].question,
    }


def test_choices_come_with_their_question():
    one = question("1", ALIKE, "Who votes?", choices=("Ann", "yes"))
    two = question("2", FAR, "Which peak?")
    made = {m.id: m for m in unanswerable_samples([one, two], PROMPTS, share=1)}
    assert made["2~unanswerable"].choices == one.choices
    assert made["1~unanswerable"].choices == ()
    message = PROMPTS.messages(made["2~unanswerable"])[-1]
    assert message.content[0]["content"] == "Not answerable."
    (generic,) = unanswerable_samples([one], PROMPTS, share=1, generic=1)
    assert generic.choices == ()


def test_what_finds_no_recording_is_left_out_and_told(monkeypatch):
    said = []
    monkeypatch.setattr(_unanswerable._log, "warning", lambda text, *args: said.append(text % args))
    samples = [*SAMPLES, question("q", ALIKE, "Dove?", target_lang="it")]
    made = unanswerable_samples(samples, PROMPTS, share=1, **LOOSE)
    assert len(made) == 16 and "q~unanswerable" not in {m.id for m in made}
    assert said == [
        "unanswerable: 1 of 17 questions left out, no recording unlike their own was found"
    ]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"share": 0}, "unanswerable.share: 0; give a number above 0 to 1"),
        ({"share": 1.1}, "unanswerable.share: 1.1"),
        ({"share": True}, "unanswerable.share: True"),
        ({"share": 0.1, "generic": "half"}, "unanswerable.generic: 'half'; give a number from 0"),
        ({"share": 0.1, "max_overlap": float("nan")}, "unanswerable.max_overlap: nan"),
        ({"share": 0.1, "seed": None}, "unanswerable.seed: None; give a whole number"),
        ({"share": 0.01}, "none could be made of 16 questions; give more"),
    ],
)
def test_wrong_settings(settings, reason):
    with pytest.raises(InputError, match=reason):
        unanswerable_samples(SAMPLES, PROMPTS, **settings)


def test_templates_without_what_is_asked_for():
    fixed = PromptTemplates.from_yaml("mcif_fixed")
    assert unanswerable_samples(SAMPLES, fixed, share=1, **LOOSE)
    with pytest.raises(InputError, match="mcif_fixed: no generic_questions.*generic=0"):
        unanswerable_samples(SAMPLES, fixed, share=1, generic=0.5)
    french = [dataclasses.replace(s, target_lang="fr") for s in SAMPLES]
    with pytest.raises(InputError, match="nle_2026: no unanswerable.fr"):
        unanswerable_samples(french, PROMPTS, share=1, **LOOSE)


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """A function that builds a data set of the tiny world, each utterance with a question."""
    folder = tmp_path_factory.mktemp("world")
    make_llm(folder / "llm")
    make_data(folder / "data")
    file = folder / "data" / "manifest.jsonl"
    rows = [json.loads(line) for line in file.open()]
    for row in rows:
        if row["task"] == "sqa":
            row["question"] = f"What about {row['target']}?"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def build(**settings):
        return speech_dataset(
            str(file),
            tokenizer=make_tokenizer(folder / "llm"),
            max_seq_len=200,
            features=str(folder / "data" / "features"),
            templates="nle_2026",
            **settings,
        )

    return build


def test_a_dataset_has_them_and_is_the_same_each_time(build):
    plain = build()
    settings = {"share": 0.5, "generic": 0.25, "max_overlap": 0.2}
    dataset = build(unanswerable=settings)
    made = dataset.samples[len(plain) :]
    assert dataset.samples[: len(plain)] == plain.samples and len(made) == len(SENTENCES) / 2
    assert {m.task for m in made} == {"sqa"} and {m.target for m in made} == {"Not answerable."}
    item = dataset.item(len(plain))
    said = [token for token, label in zip(item["tokens"], item["labels"], strict=True) if label > 0]
    assert said and len(item["frames"]) == 1
    assert (dataset.twin_lengths()[len(plain) :] > 0).all()
    again = build(unanswerable=settings)
    assert data_fingerprint(again.samples) == data_fingerprint(dataset.samples)
    other = build(unanswerable=settings | {"seed": 1})
    assert data_fingerprint(other.samples) != data_fingerprint(dataset.samples)


def test_twins_and_speeds_of_a_dataset(build):
    settings = {"share": 1, "max_overlap": 0.2}
    read = build(unanswerable=settings, text_twins=True, tasks=["sqa", "mt"])
    made = [s for s in read.samples if s.id.endswith("~unanswerable")]
    assert len(made) == 8 and {m.task for m in made} == {"qa"}
    with pytest.raises(InputError, match="audio 0.wav~0.9 is not in the feature store"):
        build(unanswerable=settings, speeds=[0.9])


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (True, "dataset.unanswerable: True; write settings as in"),
        ({"shar": 0.1}, "dataset.unanswerable: has no argument 'shar'; did you mean 'share'"),
        ({"generic": 0.1}, "dataset.unanswerable: needs 'share'"),
        ({"share": 2}, "dataset.unanswerable.share: 2"),
    ],
)
def test_wrong_settings_of_a_dataset(build, settings, reason):
    with pytest.raises(InputError, match=reason):
        build(unanswerable=settings)
