"""Checking a feature store for damage."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from torchtune_speech.errors import InputError
from torchtune_speech.features._store import INDEX_FILE, SHARD_GLOB, read_store_info
from torchtune_speech.features._writer import read_shard_index, tensor_checksum


def verify_store(path: str | Path) -> list[str]:
    """Read a whole feature store and report everything that is wrong with it.

    Found are truncated, missing and altered shards, shards that the index does not know, and an
    index that disagrees with the shards in number of frames, dimension, dtype or checksum.

    Args:
        path: folder of the store.

    Returns:
        One line per problem, naming file and key; empty if the store is sound.
    """
    path = Path(path)
    try:
        info = read_store_info(path)
    except InputError as error:
        return [str(error)]
    if not (path / INDEX_FILE).is_file():
        return [f"{path}: unfinished, {INDEX_FILE} is missing; run extract_features again"]
    try:
        rows = pq.read_table(path / INDEX_FILE).to_pylist()
    except (OSError, ValueError) as error:
        return [f"{path / INDEX_FILE}: not readable ({error})"]
    by_shard: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_shard.setdefault(row["shard"], {})[row["id"]] = row
    problems = [
        f"{file}: not in {INDEX_FILE}; run extract_features again to add it"
        for file in sorted(path.glob(SHARD_GLOB))
        if file.name not in by_shard
    ]
    for name in tqdm(sorted(by_shard), desc="verify", unit="shard", disable=None):
        problems += _verify_shard(path / name, by_shard[name], info)
    return problems


def _verify_shard(file: Path, rows: dict[str, dict[str, Any]], info: dict[str, Any]) -> list[str]:
    """Compare one shard with its rows of the index."""
    if not file.is_file():
        return [f"{file}: missing, with {len(rows)} utterances"]
    try:
        own_rows = {row["id"]: row for row in read_shard_index(file)}
        with safe_open(file, framework="pt") as shard:
            keys = set(shard.keys())
            problems = [
                f"{file}: {k!r} is in the shard but not in the index" for k in keys - set(rows)
            ]
            for key, row in rows.items():
                if key not in keys:
                    problems.append(f"{file}: {key!r} is in the index but not in the shard")
                    continue
                problem = _verify_tensor(shard.get_tensor(key), row, info)
                if problem is None and own_rows.get(key) != row:
                    problem = "the shard's own index disagrees"
                if problem is not None:
                    problems.append(f"{file}: {key!r}: {problem}")
    except (InputError, OSError, SafetensorError) as error:
        return [f"{file}: truncated or altered ({error})"]
    return problems


def _verify_tensor(frames: Any, row: dict[str, Any], info: dict[str, Any]) -> str | None:
    """What is wrong with the frames of one utterance, None if nothing is."""
    shape = [row["frames"], info["fingerprint"]["dim"]]
    if list(frames.shape) != shape:
        return f"has shape {list(frames.shape)}, {shape} expected"
    if str(frames.dtype) != f"torch.{info['dtype']}":
        return f"has dtype {frames.dtype}, {info['dtype']} expected"
    if tensor_checksum(frames) != row["checksum"]:
        return "checksum differs, the frames were altered"
    return None
