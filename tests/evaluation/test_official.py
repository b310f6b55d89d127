"""That our error rates are those of the official scorer; the long form is `make official-check`."""

import os
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import jiwer
import pytest
from evaluation.official.compare import ALLOWED, Line, compare, format_lines, main, official
from evaluation.official.files import Case, make_cases, real_cases
from whisper_normalizer.english import EnglishTextNormalizer

from torchtune_speech.data import read_mcif_output, write_mcif_output
from torchtune_speech.evaluation import mcif_scores, normalizer, read_mcif_reference

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data" / "mcif_outputs"
# OFFICIAL_PYTHON: Python of an environment elsewhere that has what `make official-env` installs.
PYTHON = Path(os.environ.get("OFFICIAL_PYTHON", ROOT / ".venv-official" / "bin" / "python"))
needs_environment = pytest.mark.skipif(
    not PYTHON.is_file(),
    reason=f"{PYTHON} is absent: run `make official-env` or set OFFICIAL_PYTHON",
)


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return make_cases(tmp_path_factory.mktemp("made"))


def write_case(folder, reference, answers):
    """An English file with one item."""
    ids = ",".join(answers)
    (folder / "ref.xml").write_text(
        '<testset name="t"><task track="short" text_lang="en">'
        f'<sample id="{ids}" iid="ASR_0" task="ASR"><reference>{reference}</reference></sample>'
        "</task></testset>",
        encoding="utf-8",
    )
    write_mcif_output(folder / "out.xml", answers, track="short", text_lang="en", name="t")
    return Case("t", folder / "out.xml", folder / "ref.xml", "en", len(answers))


def ours(case):
    texts = read_mcif_output(case.output).texts
    scores = mcif_scores(texts, read_mcif_reference(case.reference), case.lang)["scores"]
    return scores["ASR-WER"]


@needs_environment
def test_by_hand(tmp_path):
    # Reference: mister smith color 25 the cause; "color" is lost and "a" is more, in six words.
    answers = {"7": "mister smith", "3": "25 a the cause"}
    case = write_case(tmp_path, "Mr. Smith, colour twenty-five: the cause!", answers)
    assert official(case, PYTHON)["wer"] == pytest.approx(2 / 6)
    assert ours(case) == pytest.approx(2 / 6)


@needs_environment
@pytest.mark.parametrize("number", range(4))
def test_made_files(cases, number):
    line = compare(cases[number], PYTHON)
    assert line.items == 300
    assert (line.score is not None) == (number == 0)
    assert 0.3 < line.official < 0.8
    assert line.difference <= ALLOWED


@needs_environment
def test_real_files(tmp_path):
    real = real_cases(tmp_path, REAL)
    if not real:
        pytest.skip(f"{REAL}: no real files of answers there")
    one_answer = [case for case in real if case.lang == "en" and case.segments == 1]
    assert len(one_answer) == 3
    for case in one_answer:
        line = compare(case, PYTHON)
        assert line.items == 890
        assert line.score is not None and line.difference <= ALLOWED


@needs_environment
def test_the_made_files_tell_releases_of_the_normaliser_apart(cases):
    clean, texts = EnglishTextNormalizer(), read_mcif_output(cases[0].output).texts
    items = read_mcif_reference(cases[0].reference)
    as_released = jiwer.wer(
        [clean(item.reference) for item in items], [clean(texts[item.ids[0]]) for item in items]
    )
    assert abs(official(cases[0], PYTHON)["wer"] - as_released) > 1e-3


@needs_environment
def test_a_reference_without_words_stops_the_official_scorer_only(tmp_path):
    case = write_case(tmp_path, "uh", {"0": "well", "1": "yes"})
    with pytest.raises(RuntimeError, match="ValueError: one or more references are empty"):
        official(case, PYTHON)
    assert ours(case) == 2.0  # the insertions


def test_made_files_hold_what_they_are_for(cases):
    one, several, german, chinese = cases
    texts = read_mcif_output(one.output).texts
    assert len(texts) == 300
    assert 10 < sum(not normalizer("whisper", "en")(text) for text in texts.values()) < 50
    everything = " ".join(texts.values()).lower()
    for word in (
        "twenty-five",
        "2,010",
        "isn't",
        "colour",
        "hmm",
        "kinda",
        "archaeology",
        "(cough",
    ):
        assert word in everything, word
    for case in (several, german, chinese):
        items = list(ET.parse(case.reference).iter("sample"))
        assert len(items) == 300
        assert {len(item.get("id").split(",")) for item in items} == {1, 2, 3, 4}
    again = make_cases(one.output.parent, seed=1)[0]
    assert read_mcif_output(again.output).texts == texts


def test_the_larger_difference_counts():
    assert Line("a", 1, 0.5, 0.5, None).difference == 0.0
    assert Line("a", 1, 0.5, 0.5, 0.25).difference == 0.25
    assert Line("a", 1, 0.5, 0.75, 0.5).difference == 0.25
    (*_, row) = format_lines([Line("a", 9, 0.5, 0.75, None)]).splitlines()
    assert row == "| a | 9 | 0.50000000 | 0.75000000 | - | 2e-01 |"


@pytest.mark.parametrize(("wrong", "code"), [(0.0, 0), (2e-6, 1)])
def test_the_command_fails_on_a_difference(tmp_path, monkeypatch, capsys, wrong, code):
    """With a stand-in for the official environment that answers with our own rate, or nearly."""
    rates = {case.output.name: ours(case) for case in make_cases(tmp_path, items=5)}
    stand_in = tmp_path / "python"
    stand_in.write_text(
        f"#!{sys.executable}\nimport json, sys\nfrom pathlib import Path\n"
        f"rate = {rates}[Path(sys.argv[3]).name] + {wrong}\n"
        "print(json.dumps({'wer': rate, 'items': 5, 'versions': {'jiwer': '3.0.5'}}))\n"
    )
    stand_in.chmod(0o755)
    monkeypatch.setattr("sys.argv", ["compare.py", "--python", str(stand_in), "--items", "5"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == code
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "official: jiwer 3.0.5"
    assert printed[4].startswith("| made, en, one answer | 5 |")
    assert printed[-1].endswith("allowed 1e-06")
