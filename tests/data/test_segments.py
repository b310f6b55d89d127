"""Long samples as shorter ones, in a manifest of their own."""

import sys

import numpy as np
import pytest
import soundfile

from torchtune_speech.cli import main
from torchtune_speech.data import AudioCut, Sample, load_manifest, segment_samples
from torchtune_speech.files import read_jsonl, write_jsonl

overlap_expected = False


def windows_of_ten(cut, overlap_s):
    assert overlap_s == (1.0 if overlap_expected else 0.0)
    return [(0.0, 10.0), (10.0, 5.0)] if cut.path == "long.wav" else [(0.0, 3.0)]


def test_transcripts_and_translations_become_a_sample_a_window(monkeypatch):
    sample = Sample("t", "st", "Ziel", (AudioCut("long.wav", 2.0),), source_text="source")
    monkeypatch.setattr(sys.modules[__name__], "overlap_expected", True)
    first, second = segment_samples([sample], windows_of_ten, overlap_s=1.0)
    assert (first.id, second.id) == ("t#0", "t#1")
    assert first.audio == (AudioCut("long.wav", 2.0, 10.0),)
    assert second.audio == (AudioCut("long.wav", 12.0, 5.0),)
    assert first.target == "" and first.source_text is None
    assert second.extra == {"segment_of": "t", "num_segments": 2, "overlap_s": 1.0}


def test_questions_hear_all_windows():
    cuts = (AudioCut("short.wav"), AudioCut("long.wav"))
    (sample,) = segment_samples([Sample("q", "sqa", "A", cuts, question="Q?")], windows_of_ten)
    assert sample.id == "q" and sample.target == "A"
    assert sample.audio == (
        AudioCut("short.wav"),
        AudioCut("long.wav", 0.0, 10.0),
        AudioCut("long.wav", 10.0, 5.0),
    )


def test_turns_get_a_mark_for_each_window():
    messages = (
        {"role": "user", "content": "{speech} and {speech}: who?"},
        {"role": "assistant", "content": "{speech}"},
        {"role": "user", "content": "Why?"},
    )
    cuts = (AudioCut("long.wav"), AudioCut("short.wav"))
    (sample,) = segment_samples([Sample("m", "chat", "A", cuts, messages=messages)], windows_of_ten)
    assert [m["content"] for m in sample.messages] == [
        "{speech}{speech} and {speech}: who?",
        "{speech}",
        "Why?",
    ]
    assert len(sample.audio) == 3


def test_short_samples_stay_as_they_are():
    sample = Sample("s", "asr", "text", (AudioCut("short.wav"),))
    assert segment_samples([sample], windows_of_ten) == [sample]
    text = Sample("m", "mt", "Text", source_text="text")
    assert segment_samples([text], windows_of_ten) == [text]


@pytest.fixture
def talks(tmp_path):
    (tmp_path / "audio").mkdir()
    noise = np.random.default_rng(0).normal(size=25 * 8000) * 0.2
    noise[11 * 8000 : 12 * 8000] = 0
    soundfile.write(tmp_path / "audio" / "talk.wav", noise, 8000)
    rows = [
        {"id": "a", "task": "asr", "audio": "audio/talk.wav", "target": "words"},
        {"id": "q", "task": "sqa", "audio": "audio/talk.wav", "question": "Q?", "target": "A"},
    ]
    write_jsonl(tmp_path / "talks.jsonl", rows)
    return tmp_path


def test_the_command_writes_a_manifest_that_reads(talks, capsys):
    out = talks / "other" / "cut.jsonl"
    assert main(["segment", str(talks / "talks.jsonl"), str(out), "--window", "15"]) == 0
    assert "2 rows as 3" in capsys.readouterr().out
    samples = load_manifest(out, require_target=False)  # its audio files are found
    assert [s.id for s in samples] == ["a#0", "a#1", "q"]
    assert samples[1].audio[0].offset_s == pytest.approx(11.5, abs=0.5)
    assert samples[1].audio[0].path == "../audio/talk.wav"
    assert len(samples[2].audio) == 2
    assert read_jsonl(out)[0]["segment_of"] == "a"


def test_fixed_windows_with_an_overlap(talks):
    out = talks / "cut.jsonl"
    words = ["--window", "10", "--at", "fixed", "--overlap", "2"]
    assert main(["segment", str(talks / "talks.jsonl"), str(out), *words]) == 0
    assert [row.get("offset", 0.0) for row in read_jsonl(out)[:3]] == [0.0, 8.0, 16.0]
    with pytest.raises(SystemExit):
        main(["segment", str(talks / "talks.jsonl"), str(out), "--overlap", "2"])


def test_some_rows_only(talks, capsys):
    out = talks / "cut.jsonl"
    words = ["segment", str(talks / "talks.jsonl"), str(out), "--window", "10"]
    assert main([*words, "--where", "task=sqa"]) == 0
    assert [row["id"] for row in read_jsonl(out)] == ["q"]
    assert main([*words, "--where", "task=sqa", "--where", "task=asr"]) == 0
    assert {row["task"] for row in read_jsonl(out)} == {"sqa", "asr"}
    with pytest.raises(SystemExit):
        main([*words, "--where", "task"])
    assert "COLUMN=VALUE" in capsys.readouterr().err
