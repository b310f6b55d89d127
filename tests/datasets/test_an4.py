import json

import pytest

from torchtune_speech.data import load_manifest, resolve_audio
from torchtune_speech.datasets import an4_manifests
from torchtune_speech.errors import InputError

ROWS = [
    {"id": "an1", "audio": "an4/an1.flac", "duration": 1.8, "text": "T V A H  FIFTY TWO",
     "speaker": "mdxn", "source": "an4", "split": "dev"},
    {"id": "cen1", "audio": "an4/cen1.flac", "duration": 2.5, "text": "MONICA",
     "speaker": "fmjc", "source": "an4", "split": "train"},
    {"id": "jfk", "audio": "jfk/jfk.flac", "duration": 11.0, "text": "And so",
     "speaker": "jfk", "source": "jfk", "split": "demo"},
]  # fmt: skip


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "speech"
    (folder / "an4").mkdir(parents=True)
    for name in ("an1", "cen1"):
        (folder / "an4" / f"{name}.flac").touch()
    write(folder, ROWS)
    return folder


def write(folder, rows):
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_manifests(source, tmp_path):
    paths = an4_manifests(source, tmp_path / "runs" / "an4")
    assert list(paths) == ["train", "dev"]
    [train], [dev] = (load_manifest(path) for path in paths.values())
    assert (train.id, train.task, train.target, train.domain) == ("cen1", "asr", "monica", "an4")
    assert (dev.target, dev.speaker) == ("t v a h fifty two", "mdxn")
    assert dev.extra == {"split": "dev"}
    # The whole file: the source rounds durations to 0.1 s, a cut would lose the end.
    assert dev.audio[0].key == "../../speech/an4/an1.flac"
    assert resolve_audio(paths["dev"], dev.audio[0]).samefile(source / "an4" / "an1.flac")


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (ROWS[:1], "no an4 rows with split 'train'"),
        ([{**ROWS[0], "text": ""}], r"manifest.jsonl:1: field 'text'"),
        ([{**ROWS[0], "split": "test"}], r"manifest.jsonl:1: unknown split 'test'"),
        (
            [{**ROWS[0], "audio": "an4/no.flac"}],
            r"manifest.jsonl:1: audio file .*no.flac not found",
        ),
    ],
)
def test_damaged_source(source, tmp_path, rows, reason):
    write(source, rows)
    with pytest.raises(InputError, match=reason):
        an4_manifests(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_absent_source(tmp_path):
    with pytest.raises(InputError, match="manifest.jsonl: not found; give the folder"):
        an4_manifests(tmp_path / "nowhere", tmp_path / "out")
