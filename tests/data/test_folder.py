import numpy as np
import pytest
import soundfile

from torchtune_speech.data import load_manifest, manifest_from_folder, resolve_audio
from torchtune_speech.errors import InputError


def audio(path, seconds=0.5, rate=8000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(int(seconds * rate)), rate)
    return path


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "corpus"
    audio(root / "a.wav")
    (root / "a.txt").write_text("\ufeffHello\n there ", encoding="utf-8")
    (root / "a.de.txt").write_text("Hallo", encoding="utf-8")
    return root


def test_text_files_beside(folder, tmp_path):
    audio(folder / "deep" / "b.flac", 1.0, 16000)
    (folder / "deep" / "b.txt").write_text("bye")
    audio(folder / "c.wav")
    audio(folder / "d.wav")
    (folder / "d.txt").write_text("  ")
    (folder / "e.wav").write_bytes(b"no audio")
    (folder / "e.txt").write_text("lost")
    audio(folder / "f.wav", 0.0)
    (folder / "f.txt").write_text("empty")
    out = tmp_path / "manifests" / "m.jsonl"
    report = manifest_from_folder(folder, out)
    assert report.rows == {"asr": 2, "st": 1}
    assert report.hours == pytest.approx(1.5 / 3600)
    assert sorted(report.no_transcript) == ["c.wav", "d.wav"]
    assert report.unreadable == ["e.wav", "f.wav"]
    first, second, third = load_manifest(out)
    assert (first.id, first.task, first.target, first.domain) == (
        "a",
        "asr",
        "Hello there",
        "corpus",
    )
    assert first.audio[0].path == "../corpus/a.wav"
    assert first.audio[0].duration_s == pytest.approx(0.5)
    assert resolve_audio(out, first.audio[0]).samefile(folder / "a.wav")
    assert (second.id, second.task, second.target_lang) == ("a-de", "st", "de")
    assert (second.source_text, second.target) == ("Hello there", "Hallo")
    assert (third.id, third.audio[0].path) == ("deep/b", "../corpus/deep/b.flac")


def test_table(folder, tmp_path):
    audio(folder / "sub" / "one.wav")
    audio(folder / "sub" / "two.v2.wav")
    (folder / "sub" / "transcripts.tsv").write_text(
        "file\ttext\tspeaker\tzh\tnote\n"
        'one.wav\tsay "hi\tanna\t你好\tx\n'
        "two.v2\ttwo\u2028lines\tbob\t\t\n"
        "gone.wav\tgone\t\t\t\n",
        encoding="utf-8",
    )
    report = manifest_from_folder(folder, tmp_path / "m.parquet", domain="mine")
    assert report.rows == {"asr": 3, "st": 2}
    assert len(report.no_audio) == 1 and "gone" in report.no_audio[0]
    samples = {s.id: s for s in load_manifest(tmp_path / "m.parquet")}
    assert samples["sub/one"].target == 'say "hi'
    assert (samples["sub/one"].speaker, samples["sub/one"].domain) == ("anna", "mine")
    assert samples["sub/one-zh"].target == "你好" and samples["sub/one-zh"].speaker == "anna"
    assert samples["sub/two.v2"].target == "two lines"


def test_csv_with_quotes(folder, tmp_path):
    (folder / "a.txt").unlink()
    (folder / "transcripts.csv").write_text('file,text\na.wav,"yes, indeed"\n')
    manifest_from_folder(folder, tmp_path / "m.jsonl", "de")
    [sample] = load_manifest(tmp_path / "m.jsonl")
    assert (sample.target, sample.source_lang, sample.target_lang) == ("yes, indeed", "de", "de")


def test_librispeech(tmp_path):
    root = tmp_path / "libri" / "84" / "1211"
    audio(root / "84-1211-0000.flac")
    audio(root / "84-1211-0001.flac")
    (root / "84-1211.trans.txt").write_text("84-1211-0000 GO ON\n84-1211-0001 AND ON\n")
    manifest_from_folder(tmp_path / "libri", tmp_path / "libri" / "m.jsonl")
    samples = load_manifest(tmp_path / "libri" / "m.jsonl")
    assert [(s.id, s.target) for s in samples] == [
        ("84/1211/84-1211-0000", "GO ON"),
        ("84/1211/84-1211-0001", "AND ON"),
    ]


def test_split_keeps_speakers_and_translations_together(tmp_path):
    root = tmp_path / "c"
    lines = ["file\ttext\tspeaker\tde"]
    for i in range(20):
        audio(root / f"{i}.wav", 0.1)
        lines.append(f"{i}.wav\ttext {i}\tspk{i % 5}\tSatz {i}")
    (root / "transcripts.tsv").write_text("\n".join(lines))
    manifest_from_folder(root, tmp_path / "m.jsonl", dev_fraction=0.25)
    speakers = [
        {s.speaker for s in load_manifest(tmp_path / "m.jsonl", where={"split": split})}
        for split in ("train", "dev")
    ]
    assert [len(names) for names in speakers] == [3, 2]
    assert not speakers[0] & speakers[1]
    before = (tmp_path / "m.jsonl").read_text()
    manifest_from_folder(root, tmp_path / "m.jsonl", dev_fraction=0.25)
    assert (tmp_path / "m.jsonl").read_text() == before


def test_split_without_speakers(folder, tmp_path):
    audio(folder / "b.wav")
    (folder / "b.txt").write_text("two")
    manifest_from_folder(folder, tmp_path / "m.jsonl", dev_fraction=0.1)
    splits = {s.id: s.extra["split"] for s in load_manifest(tmp_path / "m.jsonl")}
    assert splits["a"] == splits["a-de"] != splits["b"]


def test_same_transcript_twice_is_merged_and_another_refused(folder, tmp_path):
    (folder / "transcripts.csv").write_text("file,text,speaker,it\na.wav,Hello there,eva,Ciao\n")
    manifest_from_folder(folder, tmp_path / "m.jsonl")
    samples = load_manifest(tmp_path / "m.jsonl")
    assert [(s.id, s.target, s.speaker) for s in samples] == [
        ("a", "Hello there", "eva"), ("a-de", "Hallo", "eva"), ("a-it", "Ciao", "eva"),
    ]  # fmt: skip
    (folder / "transcripts.csv").write_text("file,text\na.wav,Good-bye\n")
    with pytest.raises(InputError, match=r"a.wav: .*a.txt and .*transcripts.csv:2 give"):
        manifest_from_folder(folder, tmp_path / "m.jsonl")


def test_wrong_folders(folder, tmp_path):
    out = tmp_path / "m.jsonl"
    (tmp_path / "empty").mkdir()
    audio(tmp_path / "bare" / "a.wav")
    for place, reason in [
        ("no", "no such folder"),
        ("empty", "no audio"),
        ("bare", "no transcript"),
    ]:
        with pytest.raises(InputError, match=reason):
            manifest_from_folder(tmp_path / place, out)
    (folder / "transcripts.tsv").write_text("file,text\na.wav,x\n")
    with pytest.raises(InputError, match=r"transcripts.tsv:1: no column 'file' among 'file,text'"):
        manifest_from_folder(folder, out)
    (folder / "transcripts.tsv").write_text("file\ttext\n\tx\n")
    with pytest.raises(InputError, match=r"transcripts.tsv:2: field 'file' is empty"):
        manifest_from_folder(folder, out)
    (folder / "transcripts.tsv").unlink()
    (folder / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match="a.txt: byte 3 is not UTF-8"):
        manifest_from_folder(folder, out)
    audio(folder / "a.flac")
    with pytest.raises(InputError, match="a.flac and a.wav differ only in their ending"):
        manifest_from_folder(folder, out)
    assert not out.exists()
