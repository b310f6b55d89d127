"""Long recordings from short ones: test sentences one after the other, with pauses between them.

    python studies/join_recordings.py runs/nano/data/test.jsonl runs/long

writes FLAC files and `long.jsonl`, with transcript and German translation of each, to try what
cutting at silence does beside fixed windows and no cutting at all (docs/results.md).
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from torchtune_speech.data import load_manifest
from torchtune_speech.files import write_jsonl


def main() -> None:
    """Join, write, and say how many."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("manifest", type=Path, help="rows of task asr, and st into de")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--sentences", type=int, default=8, help="in a recording (%(default)s)")
    parser.add_argument("--pause", type=float, default=0.3, help="between, seconds (%(default)s)")
    options = parser.parse_args()
    german: dict[str, str] = {}
    english: dict[str, str] = {}
    for sample in load_manifest(options.manifest, tasks=["asr", "st"]):
        if sample.task == "asr":
            english[sample.audio[0].path] = sample.target
        elif sample.target_lang == "de":
            german[sample.audio[0].path] = sample.target
    paths = [path for path in english if path in german]
    options.out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for start in range(0, len(paths) - options.sentences + 1, options.sentences):
        group = paths[start : start + options.sentences]
        pieces = []
        for path in group:
            samples, rate = soundfile.read(options.manifest.parent / path)
            pause = 1e-4 * rng.normal(size=int(options.pause * rate))  # no room is quite silent
            pieces += [samples, pause]
        name = f"long-{start:04}"
        soundfile.write(options.out / f"{name}.flac", np.concatenate(pieces), rate)
        transcript = " ".join(english[path] for path in group)
        shared = {"audio": f"{name}.flac", "source_text": transcript}
        rows.append({"id": name, "task": "asr", "target": transcript} | shared)
        translation = " ".join(german[path] for path in group)
        row = {"id": f"{name}-de", "task": "st", "target_lang": "de", "target": translation}
        rows.append(row | shared)
    write_jsonl(options.out / "long.jsonl", rows)
    print(json.dumps({"recordings": len(rows) // 2, "sentences": options.sentences}))


if __name__ == "__main__":
    main()
