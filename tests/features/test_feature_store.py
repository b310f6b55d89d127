import concurrent.futures
import json
import multiprocessing.pool
import pickle
import subprocess
import sys
import threading

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from torchtune_speech.errors import InputError
from torchtune_speech.features import (
    FeatureStore,
    FeatureWriter,
    average_frames,
    check_fingerprint,
    finalize_store,
    stored_seconds,
    verify_store,
)

DIM = 8
FINGERPRINT = {
    "encoder": "test",
    "id": "test",
    "weights": "ab" * 32,
    "layer": 24,
    "after_final_norm": True,
    "dim": DIM,
    "frames_per_second": 50.0,
}


def _frames(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        f"talks/ä {n}.wav@{n}.000+1.500": torch.randn(5 + n, DIM, generator=generator)
        for n in range(count)
    }


def _write(path, frames, **kwargs):
    with FeatureWriter(path, FINGERPRINT, **kwargs) as writer:
        for key, frames_td in frames.items():
            writer.add(key, frames_td, seconds=len(frames_td) / 50)
    return writer


@pytest.fixture
def store_path(tmp_path):
    # Shards of 3 to 5 utterances.
    _write(tmp_path / "store", _frames(12), shard_mb=5e-4)
    finalize_store(tmp_path / "store")
    return tmp_path / "store"


def _shards(path):
    return sorted(path.glob("shard-*.safetensors"))


# ---- reading what was written -------------------------------------------------------------------


def test_round_trip(store_path):
    store = FeatureStore(store_path)
    frames = _frames(12)
    assert len(_shards(store_path)) > 2
    assert len(store) == 12 and sorted(store.keys()) == sorted(frames) == sorted(store)
    assert store.dim == DIM and store.frames_per_second == 50.0
    assert store.fingerprint == {**FINGERPRINT, "frame_average": 1}
    for key, frames_td in frames.items():
        assert key in store
        assert torch.equal(store[key], frames_td.bfloat16())
        assert store.num_frames(key) == len(frames_td)
        assert store.seconds(key) == pytest.approx(len(frames_td) / 50)
    assert verify_store(store_path) == []
    assert "nowhere.wav" not in store
    with pytest.raises(InputError, match=r"no features for 'nowhere\.wav'"):
        store["nowhere.wav"]


def test_reading_copies_nothing(store_path):
    store = FeatureStore(store_path)
    key = store.keys()[0]
    first, second = store[key], store[key]  # both held: a copy would lie elsewhere
    assert first.data_ptr() == second.data_ptr()


def test_frames_live_on_without_the_store(store_path):
    store = FeatureStore(store_path)
    key = store.keys()[3]
    frames_td = store[key]
    del store
    assert torch.equal(frames_td, _frames(12)[key].bfloat16())


def test_other_dtype(tmp_path):
    _write(tmp_path, _frames(2), dtype=torch.float32)
    finalize_store(tmp_path)
    for key, frames_td in _frames(2).items():
        assert torch.equal(FeatureStore(tmp_path)[key], frames_td)
    assert verify_store(tmp_path) == []


@pytest.mark.parametrize("k", [2, 3])
def test_averaging_at_writing_and_at_reading(tmp_path, k):
    _write(tmp_path / "one", _frames(4), dtype=torch.float32)
    _write(tmp_path / "averaged", _frames(4), dtype=torch.float32, frame_average=k)
    for name in ("one", "averaged"):
        finalize_store(tmp_path / name)
    at_reading = FeatureStore(tmp_path / "one", frame_average=k)
    at_writing = FeatureStore(tmp_path / "averaged")
    assert at_reading.fingerprint == at_writing.fingerprint
    assert at_reading.fingerprint["frame_average"] == k
    assert at_reading.frames_per_second == at_writing.frames_per_second == 50 / k
    assert FeatureStore(tmp_path / "averaged", frame_average=k).fingerprint["frame_average"] == k
    for key, frames_td in _frames(4).items():
        expected = average_frames(frames_td, k)
        assert torch.equal(at_writing[key], expected)
        torch.testing.assert_close(at_reading[key], expected)
        assert at_reading.num_frames(key) == at_writing.num_frames(key) == len(expected)
    with pytest.raises(InputError, match=f"frame_average is {k} in the store"):
        FeatureStore(tmp_path / "averaged", frame_average=k + 1)
    with pytest.raises(InputError, match=f"frame_average is {k} in the store"):
        FeatureStore(tmp_path / "averaged", frame_average=1)


class _Sums(torch.utils.data.Dataset):
    def __init__(self, store):
        self.store = store

    def __len__(self):
        return len(self.store)

    def __getitem__(self, number):
        return self.store[self.store.keys()[number]].float().sum()


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_in_worker_processes(store_path, start):
    store = FeatureStore(store_path)
    expected = [store[key].float().sum() for key in store.keys()]  # opens all shards
    loader = torch.utils.data.DataLoader(
        _Sums(store), num_workers=1, batch_size=None, multiprocessing_context=start
    )
    assert torch.equal(torch.stack(list(loader)), torch.stack(expected))


def test_pickle_leaves_open_shards_behind(store_path):
    store = FeatureStore(store_path)
    key = store.keys()[0]
    frames_td = store[key]
    assert torch.equal(pickle.loads(pickle.dumps(store))[key], frames_td)


# ---- refusals -----------------------------------------------------------------------------------


def test_missing_folder(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        FeatureStore(tmp_path / "nowhere")


def test_not_a_store(tmp_path):
    with pytest.raises(InputError, match="not a feature store"):
        FeatureStore(tmp_path)


def test_unfinished_store(tmp_path):
    _write(tmp_path, _frames(2))
    with pytest.raises(InputError, match="unfinished feature store"):
        FeatureStore(tmp_path)
    assert "unfinished" in verify_store(tmp_path)[0]


def test_newer_format(store_path):
    info = json.loads((store_path / "store.json").read_text())
    (store_path / "store.json").write_text(json.dumps({**info, "format_version": 99}))
    with pytest.raises(InputError, match="format_version is 99"):
        FeatureStore(store_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_unreadable_store_json(store_path, text):
    (store_path / "store.json").write_text(text)
    with pytest.raises(InputError, match=r"store\.json: not readable"):
        FeatureStore(store_path)


def test_unreadable_index(store_path):
    (store_path / "index.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(InputError, match=r"index\.parquet: not readable"):
        FeatureStore(store_path)


def test_missing_shard_when_reading(store_path):
    store = FeatureStore(store_path)
    for shard in _shards(store_path):
        shard.unlink()
    with pytest.raises(InputError, match="torchtune-speech verify"):
        store[store.keys()[0]]


def _drop_a_frame(tensors):
    return {key: frames_td[1:].clone() for key, frames_td in tensors.items()}


def _other_dtype(tensors):
    return {key: frames_td.float() for key, frames_td in tensors.items()}


def _other_keys(tensors):
    return {key + "x": frames_td for key, frames_td in tensors.items()}


@pytest.mark.parametrize("change", [_drop_a_frame, _other_dtype, _other_keys])
def test_a_shard_that_does_not_fit_the_index_is_not_read(store_path, change):
    shard = _shards(store_path)[0]
    tensors = load_file(shard)
    save_file(change(tensors), shard)
    with pytest.raises(InputError, match=f"{shard.name}: cannot read .* torchtune-speech verify"):
        FeatureStore(store_path)[next(iter(tensors))]


def test_a_truncated_shard_is_not_read(store_path):
    shard = _shards(store_path)[0]
    key = next(iter(load_file(shard)))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(InputError, match="torchtune-speech verify"):
        FeatureStore(store_path)[key]


def test_check_fingerprint_names_the_fields():
    check_fingerprint(FINGERPRINT, dict(FINGERPRINT), "store")
    other = {**FINGERPRINT, "layer": 23, "weights": None}
    with pytest.raises(InputError, match="runs/f: .*layer is 23 where 24 is needed") as caught:
        check_fingerprint(FINGERPRINT, other, "runs/f")
    assert "weights is None" in str(caught.value) and "dim" not in str(caught.value)
    with pytest.raises(InputError, match="extra is 1 where None"):
        check_fingerprint(FINGERPRINT, {**FINGERPRINT, "extra": 1}, "store")


def test_a_renamed_model_with_the_same_weights_fits():
    renamed = {**FINGERPRINT, "id": "renamed"}
    check_fingerprint(FINGERPRINT, renamed, "store")
    with pytest.raises(InputError, match="id is 'renamed'"):
        check_fingerprint({**FINGERPRINT, "weights": None}, {**renamed, "weights": None}, "store")


def test_adding_with_another_fingerprint_or_dtype(store_path):
    before = {f.name: f.read_bytes() for f in store_path.iterdir()}
    with pytest.raises(InputError, match="layer is 24 where 6 is needed"):
        FeatureWriter(store_path, {**FINGERPRINT, "layer": 6})
    with pytest.raises(InputError, match="frame_average is 1 where 3 is needed"):
        FeatureWriter(store_path, FINGERPRINT, frame_average=3)
    with pytest.raises(InputError, match="dtype is bfloat16 in the store but float16"):
        FeatureWriter(store_path, FINGERPRINT, dtype=torch.float16)
    assert {f.name: f.read_bytes() for f in store_path.iterdir()} == before


def test_shards_of_an_unknown_store_are_not_taken_over(store_path):
    (store_path / "store.json").unlink()
    with pytest.raises(InputError, match="is not a feature store"):
        FeatureWriter(store_path, FINGERPRINT)


@pytest.mark.parametrize("shape", [(0, DIM), (3, DIM + 1), (3,)])
def test_wrong_frames(tmp_path, shape):
    with pytest.raises(ValueError, match="expected frames"):
        FeatureWriter(tmp_path, FINGERPRINT).add("a", torch.zeros(shape), 1.0)


def test_nothing_to_finalize(tmp_path):
    FeatureWriter(tmp_path, FINGERPRINT)
    with pytest.raises(InputError, match="no shards"):
        finalize_store(tmp_path)


# ---- several writers, interruptions -------------------------------------------------------------


def test_writers_of_several_ranks(tmp_path):
    frames = _frames(10)
    keys = list(frames)
    writers = [FeatureWriter(tmp_path, FINGERPRINT, shard_mb=5e-4, rank=r) for r in range(3)]
    for number, key in enumerate(keys):
        writers[number % 3].add(key, frames[key], 1.0)
    for writer in writers:
        writer.flush()
    assert finalize_store(tmp_path) == 10
    store = FeatureStore(tmp_path)
    assert all(torch.equal(store[key], frames[key].bfloat16()) for key in keys)
    assert {f.name[:11] for f in _shards(tmp_path)} == {f"shard-{r:05d}" for r in range(3)}


def test_the_same_key_from_two_writers_is_refused(tmp_path):
    _write(tmp_path, _frames(2), rank=0)
    _write(tmp_path, _frames(1), rank=1)
    with pytest.raises(InputError, match="is both in shard-00000-00000"):
        finalize_store(tmp_path)


def test_adding_to_a_finished_store(store_path):
    old = FeatureStore(store_path)
    _write(store_path, {"new.wav": torch.ones(3, DIM)})
    # Until the index is merged, readers see the store as it was.
    assert "new.wav" not in FeatureStore(store_path)
    assert any("not in index" in problem for problem in verify_store(store_path))
    assert finalize_store(store_path) == 13
    new = FeatureStore(store_path)
    assert torch.equal(new["new.wav"], torch.ones(3, DIM).bfloat16())
    assert all(torch.equal(new[key], old[key]) for key in old.keys())
    assert verify_store(store_path) == []


KILLED_WRITER = """
import os, signal, sys, torch
from torchtune_speech.features import FeatureWriter
import torchtune_speech.features._writer as module

def killed_save(tensors, path, metadata):
    with open(path, "wb") as file:
        file.write(b"half a shard")
    os.kill(os.getpid(), signal.SIGKILL)

writer = FeatureWriter(sys.argv[1], {fingerprint}, shard_mb=5e-4)
for n in range(100):
    if n == 20:
        module.save_file = killed_save
    writer.add(f"{{n:03d}}", torch.full((10, {dim}), float(n)), 0.2)
"""


def test_a_killed_run_loses_only_the_unfinished_shard(tmp_path):
    script = KILLED_WRITER.format(fingerprint=FINGERPRINT, dim=DIM)
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert result.returncode == -9
    done = stored_seconds(tmp_path)
    assert done == {f"{n:03d}": 0.2 for n in range(len(done))} and 16 <= len(done) <= 20
    with FeatureWriter(tmp_path, FINGERPRINT, shard_mb=5e-4) as writer:
        for n in range(100):
            if f"{n:03d}" not in done:
                writer.add(f"{n:03d}", torch.full((10, DIM), float(n)), 0.2)
    assert finalize_store(tmp_path) == 100
    store = FeatureStore(tmp_path)
    assert all(store[f"{n:03d}"].float().mean() == n for n in range(100))
    assert verify_store(tmp_path) == []
    assert not [f for f in tmp_path.iterdir() if "partial" in f.name]


def test_an_error_before_the_first_shard_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), FeatureWriter(tmp_path / "new", FINGERPRINT) as writer:
        writer.add("a", torch.ones(2, DIM), 1.0)
        raise RuntimeError
    assert not (tmp_path / "new").exists()


def test_an_error_later_keeps_whole_shards(tmp_path):
    with (
        pytest.raises(RuntimeError),
        FeatureWriter(tmp_path, FINGERPRINT, shard_mb=1e-6) as writer,
    ):
        writer.add("a", torch.ones(2, DIM), 1.0)
        raise RuntimeError
    assert stored_seconds(tmp_path) == {"a": 1.0}


def test_interrupt_keeps_everything(tmp_path):
    with pytest.raises(KeyboardInterrupt), FeatureWriter(tmp_path, FINGERPRINT) as writer:
        writer.add("a", torch.ones(2, DIM), 1.0)
        raise KeyboardInterrupt
    assert stored_seconds(tmp_path) == {"a": 1.0}


def test_shards_are_written_while_the_next_one_fills(tmp_path, monkeypatch):
    started, goes_on = threading.Event(), threading.Event()

    def slow(tensors, path, metadata):
        path.write_bytes(b"half a shard")
        started.set()
        assert goes_on.wait(60)
        save_file(tensors, path, metadata=metadata)

    monkeypatch.setattr("torchtune_speech.features._writer.save_file", slow)
    with FeatureWriter(tmp_path, FINGERPRINT, shard_mb=1e-4) as writer:
        for key, count in (("a", 8), ("b", 2), ("c", 2)):  # the first is a shard of its own
            writer.add(key, torch.ones(count, DIM), 1.0)
            assert stored_seconds(tmp_path) == {}  # nor is half a shard to be seen
        assert started.wait(60) and list(tmp_path.glob(".shard-*"))
        goes_on.set()
    assert stored_seconds(tmp_path) == dict.fromkeys("abc", 1.0)
    assert (writer.frames_written, writer.bytes_written) == (12, 12 * DIM * 2)


@pytest.mark.parametrize("another_error", [False, True])
def test_what_goes_wrong_with_a_shard_comes_to_light(tmp_path, monkeypatch, another_error):
    def full(tensors, path, metadata):
        raise OSError("No space left on device")

    monkeypatch.setattr("torchtune_speech.features._writer.save_file", full)
    expected = RuntimeError if another_error else OSError
    with pytest.raises(expected), FeatureWriter(tmp_path / "new", FINGERPRINT) as writer:
        writer.add("a", torch.ones(2, DIM), 1.0)
        writer._hand_over()
        if another_error:
            raise RuntimeError
        concurrent.futures.wait([writer._written])
        writer.add("b", torch.ones(2, DIM), 1.0)
        raise AssertionError("the next batch is told")
    assert not (tmp_path / "new").exists()


def test_a_batch_comes_as_its_utterances_would(tmp_path):
    frames = _frames(6)
    with FeatureWriter(tmp_path / "batch", FINGERPRINT, frame_average=3) as writer:
        writer.add_batch(
            list(frames), list(frames.values()), [len(f) / 50 for f in frames.values()]
        )
        writer.add_batch([], [], [])
    _write(tmp_path / "one", frames, frame_average=3)
    for name in ("batch", "one"):
        finalize_store(tmp_path / name)
    batch, one = FeatureStore(tmp_path / "batch"), FeatureStore(tmp_path / "one")
    assert batch.keys() == one.keys()
    assert all(torch.equal(batch[key], one[key]) for key in frames)
    assert all(batch.seconds(key) == one.seconds(key) for key in frames)
    with pytest.raises(ValueError, match="was added before"):
        writer.add_batch(["a", "a"], [torch.ones(2, DIM)] * 2, [1.0, 1.0])


# ---- damage -------------------------------------------------------------------------------------


def test_verify_finds_every_kind_of_flipped_byte(store_path):
    shard = _shards(store_path)[1]
    data = shard.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    # In the header's length, in names and numbers of the header, in the frames.
    for position in [0, 20, header // 2, header, (header + len(data)) // 2, len(data) - 1]:
        altered = bytearray(data)
        altered[position] ^= 1
        shard.write_bytes(altered)
        problems = verify_store(store_path)
        assert problems and all(shard.name in problem for problem in problems), position
    shard.write_bytes(data)
    assert verify_store(store_path) == []


@pytest.mark.parametrize("cut", [1, 100, 0.5])
def test_verify_finds_truncation(store_path, cut):
    shard = _shards(store_path)[0]
    data = shard.read_bytes()
    shard.write_bytes(data[: -cut if cut >= 1 else int(len(data) * cut)])
    problems = verify_store(store_path)
    assert len(problems) == 1 and shard.name in problems[0] and "truncated" in problems[0]
    with pytest.raises(InputError, match="not a readable shard"):
        stored_seconds(store_path)


def test_verify_finds_missing_shards(store_path):
    shard = _shards(store_path)[2]
    shard.unlink()
    problems = verify_store(store_path)
    assert len(problems) == 1 and shard.name in problems[0] and "missing" in problems[0]


def test_verify_finds_a_shard_with_other_frames(store_path):
    shard = _shards(store_path)[0]
    tensors = load_file(shard)
    _write(store_path.parent / "other", {k: v.float() + 1 for k, v in tensors.items()})
    (store_path.parent / "other" / "shard-00000-00000.safetensors").replace(shard)
    problems = verify_store(store_path)
    assert len(problems) == len(tensors) and all("checksum" in p for p in problems)
    save_file({k: v.float() for k, v in tensors.items()}, shard)
    assert verify_store(store_path)


def test_verify_finds_an_index_that_disagrees(store_path):
    table = pq.read_table(store_path / "index.parquet")
    rows = table.to_pylist()
    for field, value in (("frames", 1), ("seconds", 99.0), ("checksum", 1), ("id", "other.wav")):
        changed = [dict(row) for row in rows]
        changed[4][field] = value
        pq.write_table(
            table.from_pylist(changed, schema=table.schema), store_path / "index.parquet"
        )
        problems = verify_store(store_path)
        assert problems and all(changed[4]["shard"] in problem for problem in problems), field


def test_verify_of_something_else(tmp_path):
    assert "no such folder" in verify_store(tmp_path / "nowhere")[0]
    assert "not a feature store" in verify_store(tmp_path)[0]


def test_reading_at_the_same_time_from_threads(store_path):
    store = FeatureStore(store_path)
    frames = _frames(12)
    with multiprocessing.pool.ThreadPool(8) as pool:
        for key, frames_td in zip(frames, pool.map(store.__getitem__, frames), strict=True):
            assert torch.equal(frames_td, frames[key].bfloat16())
