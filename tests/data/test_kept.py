"""The file of kept positions: written and read again, and what does not fit refused."""

import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny_world import writer_of_frames

from torchtune_speech.data import KeptPositions, keep_index, write_kept
from torchtune_speech.errors import InputError
from torchtune_speech.features import FeatureStore, FeatureWriter, finalize_store

KEPT = {"b": (5, [0, 1, 4]), "a": (3, [2]), "empty": (0, []), "c": (2, [0, 1])}
FINGERPRINT = {"projector": "abc", "pad_token": 7}


@pytest.fixture
def file(tmp_path):
    of_store = {"store_fingerprint": {"dim": 3}, "checksums": dict.fromkeys(KEPT, 2**32 - 1)}
    write_kept(tmp_path / "k.parquet", KEPT, fingerprint=FINGERPRINT, **of_store)
    return tmp_path / "k.parquet"


def test_what_was_written_is_read(file):
    for kept in (KeptPositions(file), pickle.loads(pickle.dumps(KeptPositions(file)))):
        assert len(kept) == 4 and "a" in kept and "d" not in kept
        assert {k: kept.positions(k, n).tolist() for k, (n, _) in KEPT.items()} == {
            k: positions for k, (_, positions) in KEPT.items()
        }
        assert kept.fingerprint == FINGERPRINT and kept.store_fingerprint == {"dim": 3}


def test_an_empty_store_has_an_empty_file(tmp_path):
    write_kept(tmp_path / "k.parquet", {}, fingerprint={}, store_fingerprint={}, checksums={})
    assert len(KeptPositions(tmp_path / "k.parquet")) == 0


def test_positions_in_the_packed_output():
    parts = [[0, 1, 4], [2], [], [0, 1]]
    kept = [torch.tensor(p, dtype=torch.int32) for p in parts]
    found = keep_index(kept, [5, 3, 0, 2])
    assert found.tolist() == [0, 1, 4, 7, 8, 9] and found.dtype == torch.long
    assert keep_index([], []).shape == (0,)


def test_utterances_that_do_not_fit_are_refused(file):
    kept = KeptPositions(file)
    with pytest.raises(InputError, match="does not know 'd'; run torchtune-speech keep"):
        kept.positions("d", 3)
    with pytest.raises(InputError, match="with 5 speech vectors of 'b', this one has 6;"):
        kept.positions("b", 6)


def test_a_store_of_other_frames_is_refused(file, tmp_path):
    writer_of_frames(tmp_path / "features")
    store = FeatureStore(tmp_path / "features")
    with pytest.raises(InputError, match="k.parquet: fingerprint does not fit: dim is 12 where 3"):
        KeptPositions(file).check_store(store)
    right = tmp_path / "right.parquet"
    of_store = {"store_fingerprint": store.fingerprint}
    write_kept(right, KEPT, fingerprint=FINGERPRINT, **of_store, checksums=dict.fromkeys(KEPT, 0))
    KeptPositions(right).check_store(store)  # which has other utterances


def test_a_store_that_was_extracted_again_is_refused(tmp_path):
    """The same encoder, keys and lengths, but other frames of one utterance."""
    writer_of_frames(tmp_path / "features")
    store, file = FeatureStore(tmp_path / "features"), tmp_path / "k.parquet"
    write_kept(
        file,
        {key: (store.num_frames(key), [0]) for key in ("1.wav", "2.wav")} | {"gone": (1, [0])},
        fingerprint=FINGERPRINT,
        store_fingerprint=store.fingerprint,
        checksums={key: store.checksum(key) for key in store} | {"gone": 7},
    )
    KeptPositions(file).check_store(store)
    fingerprint = {k: v for k, v in store.fingerprint.items() if k != "frame_average"}
    with FeatureWriter(tmp_path / "again", fingerprint, dtype=torch.float32) as writer:
        for key in store:
            change = 1e-3 if key == "2.wav" else 0.0
            writer.add(key, store[key] + change, seconds=store.seconds(key))
    finalize_store(tmp_path / "again")
    with pytest.raises(
        InputError, match="made with other frames of '2.wav' than those of .*again;"
    ):
        KeptPositions(file).check_store(FeatureStore(tmp_path / "again"))


def test_a_file_of_the_first_format_is_read_and_says_so(file, tmp_path):
    """It has neither checksums nor, in its fingerprint, the rule."""
    table = pq.read_table(file)
    info = table.schema.metadata[b"torchtune_speech"].replace(b'"format": 2', b'"format": 1')
    old = table.drop_columns("checksum").replace_schema_metadata({b"torchtune_speech": info})
    pq.write_table(old, tmp_path / "old.parquet")
    kept = KeptPositions(tmp_path / "old.parquet")
    assert kept.positions("b", 5).tolist() == [0, 1, 4] and "pads" not in kept.fingerprint


@pytest.mark.parametrize("positions", [[0, 0], [1, 0], [0, 2], [-1, 0]])
def test_positions_that_cannot_be_are_refused(tmp_path, positions):
    bad = {"a": (3, [0, 2]), "b": (2, positions)}
    of_store = {"store_fingerprint": {}, "checksums": dict.fromkeys(bad, 0)}
    write_kept(tmp_path / "k.parquet", bad, fingerprint=FINGERPRINT, **of_store)
    with pytest.raises(InputError, match="holds positions that no utterance has"):
        KeptPositions(tmp_path / "k.parquet")


def test_other_files_are_refused(file, tmp_path):
    with pytest.raises(InputError, match="nowhere: no such file; run torchtune-speech keep"):
        KeptPositions("nowhere")
    table = pq.read_table(file)
    pq.write_table(table.replace_schema_metadata({}), tmp_path / "other.parquet")
    newer = table.schema.metadata[b"torchtune_speech"].replace(b'"format": 2', b'"format": 3')
    pq.write_table(
        table.replace_schema_metadata({b"torchtune_speech": newer}), tmp_path / "newer.parquet"
    )
    (tmp_path / "cut.parquet").write_bytes(file.read_bytes()[:-9])
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    for name in ("other", "cut", "x"):
        with pytest.raises(InputError, match=f"{name}.parquet: holds no kept positions"):
            KeptPositions(tmp_path / f"{name}.parquet")
    with pytest.raises(InputError, match="by a newer torchtune-speech"):
        KeptPositions(tmp_path / "newer.parquet")
