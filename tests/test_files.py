import errno
import fcntl
import json
import os
import sys

import pytest

from torchtune_speech.errors import InputError, did_you_mean
from torchtune_speech.files import (
    atomic_write,
    iter_jsonl,
    lock_folder,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
)


def test_atomic_write_leaves_the_old_file_and_no_litter_when_the_block_fails(tmp_path):
    path = tmp_path / "made" / "file.txt"
    with atomic_write(path) as temporary:
        assert temporary.suffix == ".txt" and temporary.parent == path.parent
        temporary.write_text("old")
        assert not path.exists()
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_atomic_write_makes_whole_folders(tmp_path):
    with pytest.raises(ValueError), atomic_write(tmp_path / "step_1") as temporary:
        temporary.mkdir()
        (temporary / "a").write_text("1")
        raise ValueError
    assert list(tmp_path.iterdir()) == []
    with atomic_write(tmp_path / "step_1") as temporary:
        temporary.mkdir()
        (temporary / "a").write_text("1")
    assert [p.name for p in tmp_path.rglob("*")] == ["step_1", "a"]


@pytest.mark.skipif(sys.platform != "linux", reason="names of open files are in /proc")
def test_everything_is_on_disk_before_and_after_the_rename(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(file):
        events.append(os.path.realpath(f"/proc/self/fd/{file}"))
        fsync(file)

    def note_replace(old, new):
        events.append("rename")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    with atomic_write(tmp_path / "step_1") as temporary:
        (temporary / "state").mkdir(parents=True)
        (temporary / "state" / "a").write_text("1")
        (temporary / "b").write_text("2")
    before, after = events[: events.index("rename")], events[events.index("rename") + 1 :]
    written = (temporary, temporary / "state", temporary / "state" / "a", temporary / "b")
    assert set(before) == set(map(str, written))
    assert after == [str(tmp_path)]
    events.clear()
    write_json(tmp_path / "a.json", 1)
    assert events[1:] == ["rename", str(tmp_path)]


def test_json_lines_round_trip_text_of_any_kind(tmp_path):
    # U+2028 and a carriage return end a line for str.splitlines, but not for JSON lines.
    rows = [{"text": "Grüße\u2028你好\r\n\x85"}, {"n": [1.5, None]}]
    write_jsonl(tmp_path / "rows.jsonl", (row for row in rows))
    assert read_jsonl(tmp_path / "rows.jsonl") == rows
    assert "Grüße" in (tmp_path / "rows.jsonl").read_text(encoding="utf-8")


def test_json_lines_skip_empty_lines_and_count_them(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"a": 2}')
    assert list(iter_jsonl(path)) == [(1, {"a": 1}), (3, {"a": 2})]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": 1}\n{"a": \n', ["rows.jsonl:2", "not JSON"]),
        (b'{"a": 1}\n[1]\n', ["rows.jsonl:2", "list"]),
        (b'{"a": "\xff"}\n', ["rows.jsonl", "UTF-8"]),
    ],
)
def test_bad_json_lines_are_refused_by_place(tmp_path, content, words):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_jsonl(path)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


def test_json_round_trip_and_its_error(tmp_path):
    path = tmp_path / "a" / "report.json"
    write_json(path, {"wer": 0.1, "text": "你好"})
    assert read_json(path) == {"wer": 0.1, "text": "你好"} == json.loads(path.read_text("utf-8"))
    path.write_text("{")
    with pytest.raises(InputError, match="report.json: not JSON"):
        read_json(path)
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert path.read_text() == "{"


def test_did_you_mean():
    assert did_you_mean("batchsize", ["batch_size", "seed"]) == "; did you mean 'batch_size'?"
    assert did_you_mean("xyz", ["batch_size", "seed"]) == ""


def test_one_run_writes_to_a_folder_at_a_time(tmp_path):
    folder = tmp_path / "runs" / "A"
    with lock_folder(folder):
        with (
            pytest.raises(InputError, match="A: another run is writing there"),
            lock_folder(folder),
        ):
            pass
        (folder / "file").touch()
    with lock_folder(folder):  # free again
        pass
    assert [p.name for p in folder.iterdir()] == ["file"]


def test_an_empty_folder_that_was_made_for_a_lock_goes_again(tmp_path):
    with lock_folder(tmp_path / "runs" / "A"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_child_that_outlives_its_parent_has_no_lock(tmp_path):
    """As a loader's worker may, by some seconds."""
    to_child, to_parent = os.pipe(), os.pipe()
    with lock_folder(tmp_path):
        child = os.fork()
        if not child:
            os.write(to_parent[1], b"!")
            os.read(to_child[0], 1)  # until the test has looked
            os._exit(0)
        os.read(to_parent[0], 1)
    with lock_folder(tmp_path):
        pass
    os.write(to_child[1], b"!")
    assert os.waitpid(child, 0)[1] == 0


def test_a_file_system_without_locks_is_written_to_all_the_same(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with lock_folder(tmp_path / "A"):
        (tmp_path / "A" / "file").touch()
    assert [p.name for p in (tmp_path / "A").iterdir()] == ["file"]
