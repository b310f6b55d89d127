"""The file of kept positions: written and read again, and what does not fit refused."""

import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny_world import writer_of_frames

from torchtune_speech.data import KeptPositions, keep_index, write_kept
from torchtune_speech.errors import InputError
from torchtune_speech.features import FeatureStore

KEPT = {"b": (5, [0, 1, 4]), "a": (3, [2]), "empty": (0, []), "c": (2, [0, 1])}
FINGERPRINT = {"projector": "abc", "pad_token": 7}


@pytest.fixture
def file(tmp_path):
    write_kept(tmp_path / "k.parquet", KEPT, fingerprint=FINGERPRINT, store_fingerprint={"dim": 3})
    return tmp_path / "k.parquet"


def test_what_was_written_is_read(file):
    for kept in (KeptPositions(file), pickle.loads(pickle.dumps(KeptPositions(file)))):
        assert len(kept) == 4 and "a" in kept and "d" not in kept
        assert {k: kept.positions(k, n).tolist() for k, (n, _) in KEPT.items()} == {
            k: positions for k, (_, positions) in KEPT.items()
        }
        assert kept.fingerprint == FINGERPRINT and kept.store_fingerprint == {"dim": 3}


def test_an_empty_store_has_an_empty_file(tmp_path):
    write_kept(tmp_path / "k.parquet", {}, fingerprint={}, store_fingerprint={})
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
    write_kept(right, KEPT, fingerprint=FINGERPRINT, store_fingerprint=store.fingerprint)
    KeptPositions(right).check_store(store)


@pytest.mark.parametrize("positions", [[0, 0], [1, 0], [0, 2], [-1, 0]])
def test_positions_that_cannot_be_are_refused(tmp_path, positions):
    bad = {"a": (3, [0, 2]), "b": (2, positions)}
    write_kept(tmp_path / "k.parquet", bad, fingerprint=FINGERPRINT, store_fingerprint={})
    with pytest.raises(InputError, match="holds positions that no utterance has"):
        KeptPositions(tmp_path / "k.parquet")


def test_other_files_are_refused(file, tmp_path):
    with pytest.raises(InputError, match="nowhere: no such file; run torchtune-speech keep"):
        KeptPositions("nowhere")
    table = pq.read_table(file)
    pq.write_table(table.replace_schema_metadata({}), tmp_path / "other.parquet")
    newer = table.schema.metadata[b"torchtune_speech"].replace(b'"format": 1', b'"format": 2')
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
