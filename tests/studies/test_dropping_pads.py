"""The parts of the study of dropped pads that need no models."""

import importlib.util
import json
import re
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from torchtune_speech.nano._grammar import spoken_words

SCRIPT = Path(__file__).parents[2] / "studies" / "dropping_pads.py"


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("dropping_pads", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pads_and_tokens_are_counted_at_the_end_of_the_transcript(study):
    # Tokens 0 to 3, pads 4 to 6: the token at 1 is lost, the pad at 5 is kept.
    counts = study.count_pads(4, 7, [0, 2, 3, 5])
    assert counts == {"tokens": 4, "vectors": 7, "kept": 4, "lost": 1, "extra": 1, "no_room": 0}
    crowded = study.count_pads(5, 3, [0, 1])
    assert (crowded["lost"], crowded["extra"], crowded["no_room"]) == (1, 0, 2)
    shares = study.pad_shares([counts, crowded])
    assert shares == pytest.approx({"lost": 2 / 9, "extra": 1 / 3, "no_room": 2 / 9})


@pytest.mark.parametrize("snr_db", [20, 0])
def test_noise_has_the_power_asked_for(study, snr_db):
    speech = 0.2 * np.sin(np.arange(16_000) / 5)
    noisy = study.add_noise(speech, snr_db, np.random.default_rng(0))
    scale = noisy @ speech / (speech @ speech)  # loud sums are turned down
    noise = noisy / scale - speech
    assert 10 * np.log10(np.mean(speech**2) / np.mean(noise**2)) == pytest.approx(snr_db, abs=0.2)
    assert np.abs(noisy).max() <= 1


def test_joined_recordings_ask_about_the_first_one(study):
    def recording(text, answerable):
        row = study.transcribe_row(text)
        question = {"task": "sqa", "question": "Who?", "target": "He.", "answerable": answerable}
        return np.ones(10), [row, row | {"task": "st"}, row | question]

    group = [recording("One.", True), recording("Two.", True)]
    samples, (asked, question) = study.join(group, np.random.default_rng(0))
    assert len(samples) == 2 * (10 + 4800)
    assert (asked["target"], asked["source_text"]) == ("One. Two.", "One.\nTwo.")
    assert (question["source_text"], question["target"]) == ("One.\nTwo.", "He.")
    group[0] = recording("One.", False)
    assert [row["task"] for row in study.join(group, np.random.default_rng(0))[1]] == ["asr"]


def test_sentences_with_unheard_words_are_the_grammars_but_for_these(study):
    texts = list(islice(study.unheard_sentences(), 20))
    others = {word for text in texts for word in re.findall(r"\w+", text.lower())} - spoken_words()
    wanted = " ".join((*study.PEOPLE, *study.THINGS, *study.PLACES)).split()
    assert others and others <= set(wanted)
    assert all(any(person in text for person in study.PEOPLE) for text in texts)
    assert not (set(wanted) - {"in", "the", "at", "near", "behind", "on"}) & spoken_words()


def test_results_tables_and_plot(study):
    said, other = "The pilot waits.", "The doctor waits."
    asr = study.transcribe_row(said) | {"id": "a-asr-en", "domain": "clean"}
    st = asr | {"id": "a-st-de", "task": "st", "target_lang": "de", "target": "Der Pilot wartet."}
    more = {"finish_reason": "stop", "num_tokens": 3}
    heard = [asr | more | {"prediction": other}, st | more | {"prediction": st["target"]}]
    twin = {"id": "a", "task": "mt", "prediction": said}
    read = [asr | more | twin, st | more | {"task": "mt", "prediction": "Der Arzt wartet."}]
    looked = {"id": "a-asr-en", "domain": "clean", "text": said, "ctc": other, "nearest": other}
    looked |= study.count_pads(4, 9, [0, 1, 2]) | {"ctc_tokens": 3, "as_ctc": [True, False, True]}
    looked |= {"beside_ctc": study.count_pads(3, 9, [0, 1, 2])}
    systems = {"all": heard, "kept": heard, "exact": heard, "read": read}
    result = study.collect(systems, [looked])["clean"]
    scores = result["scores"]
    assert scores["kept"]["wer"] == pytest.approx(1 / 3)
    assert scores["read"]["wer"] == 0
    assert scores["kept"]["bleu"]["de"] > scores["read"]["bleu"]["de"]
    assert (scores["kept"]["unheard_found"], scores["read"]["unheard_found"]) == (0, 1)
    assert result["causes"]["transcript"]["lost"] == 1 / 4
    assert result["causes"]["beside_ctc"]["lost"] == 0
    assert result["causes"]["as_ctc_at"] == [pytest.approx(2 / 3), None, None]
    assert (result["examples"][0]["kept"], result["examples"][0]["read"]) == (other, said)
    json.dumps(result)
    assert "| clean | 0.333 / 0.333 / 0.333 / 0.000 |" in study.format_scores({"clean": result})
    assert "0.250, 0.000 | 0.000, 0.000" in study.format_causes({"clean": result})
    assert study.draw({"clean": result}).startswith("<svg")
