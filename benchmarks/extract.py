"""Extraction of encoder frames beside the plain loop over Hugging Face's encoder, end to end.

Wav files of noise, 2 to 20 seconds, become frames on disk: through the recipe `extract_features`
into a feature store, and with soundfile, SeamlessM4TFeatureExtractor and SeamlessM4Tv2SpeechEncoder
one by one and in batches of 16 in the order of the files. All have the same random weights, of the
real layer size, and take turns in one process; loading the weights is not counted. The frames must
be the same.

    python benchmarks/extract.py                              # 2 layers, on a CPU
    python benchmarks/extract.py --device cuda --size large   # all 24, on a GPU
"""

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from common import (
    compute_dtype,
    parser,
    print_table,
    seconds,
    take_turns,
    write_section,
)
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import SeamlessM4TFeatureExtractor, SeamlessM4Tv2Config
from transformers.models.seamless_m4t_v2.modeling_seamless_m4t_v2 import SeamlessM4Tv2SpeechEncoder

from torchtune_speech.encoders import load_audio
from torchtune_speech.features import FeatureStore

sys.path.append(str(Path(__file__).parents[1] / "recipes"))
import extract_features

RATE = 16_000
SHAPES: dict[str, dict[str, int]] = {
    "2-layers": {"speech_encoder_layers": 2},
    "large": {"speech_encoder_layers": 24},
    "tiny": {
        "speech_encoder_layers": 2,
        "hidden_size": 32,
        "speech_encoder_attention_heads": 2,
        "speech_encoder_intermediate_size": 48,
    },
}
# Utterances: enough for several full batches of Hugging Face, and of ours on a GPU.
COUNTS = {"2-layers": 48, "large": 1000, "tiny": 6}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.25}


def main() -> None:
    """Measure, print and write."""
    arguments = parser(__doc__, sizes=list(SHAPES))
    arguments.set_defaults(repeats=2)
    arguments.add_argument("--count", type=int, help="of utterances; default: by size")
    arguments.add_argument("--hf-batch", type=int, default=16, help="(%(default)s)")
    options = arguments.parse_args()
    dtype = compute_dtype(options)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        root = Path(folder)
        files = make_audio(root, options.count or COUNTS[options.size])
        theirs = make_model(root / "model", SHAPES[options.size], options.device, dtype)
        recipe = make_recipe(root, options, dtype)
        stores, theirs_at = [], {1: root / "hf1", options.hf_batch: root / "hf16"}
        runs: dict[str, Callable[[], Any]] = {"ours": lambda: stores.append(run(recipe, root))}
        for size, out in theirs_at.items():
            out.mkdir()
            runs[f"Hugging Face, batch {size}"] = lambda size=size, out=out: run_hf(
                theirs, files, size, out
            )
        times = take_turns(runs, options.repeats, options.device)
        difference = max(
            largest_difference(FeatureStore(stores[-1]), out, files) for out in theirs_at.values()
        )
        batches = batches_of(recipe)
        filter_bank_s = time_filter_bank(recipe, batches)
    audio_s = sum(job.seconds for batch in batches for job in batch)
    section = summary(times, audio_s, filter_bank_s, padding(batches), options.hf_batch)
    section |= {"largest difference": difference, "frames are equal": difference < TOLERANCE[dtype]}
    rows = [[n, s, audio_s / s, times["ours"] / s] for n, s in times.items()]
    print_table(["extraction", "s", "x real time", "speed to ours"], rows)
    if not section["frames are equal"]:
        raise SystemExit(f"frames differ by {difference:.2g}: nothing to compare")
    write_section(options, "extract", section)


def make_audio(root: Path, count: int) -> list[Path]:
    """Noise of log-normal length, 2 to 20 s with a median of 7, and the manifest of it."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(7.0), 0.55, count), 2, 20)
    files = [root / f"{number:05d}.wav" for number in range(count)]
    for file, length in zip(files, lengths, strict=True):
        soundfile.write(file, rng.normal(size=int(length * RATE)) * 0.1, RATE)
    rows = [{"id": f.stem, "task": "asr", "target": "-", "audio": f.name} for f in files]
    (root / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return files


def make_model(
    folder: Path, shape: dict[str, int], device: str, dtype: torch.dtype
) -> SeamlessM4Tv2SpeechEncoder:
    """Hugging Face's speech encoder with random weights, saved in the format of the real one."""
    folder.mkdir()
    torch.manual_seed(0)
    config = SeamlessM4Tv2Config(**shape)
    config.save_pretrained(folder)
    config.add_adapter = False
    with torch.device(device):
        model = SeamlessM4Tv2SpeechEncoder(config).to(dtype).eval()
    weights = {f"speech_encoder.{k}": v.cpu() for k, v in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    return model


def make_recipe(
    root: Path, options: argparse.Namespace, dtype: torch.dtype
) -> extract_features.ExtractFeaturesRecipe:
    """The recipe with its weights loaded."""
    name = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
    cfg = OmegaConf.create(
        {
            "manifest": str(root / "manifest.jsonl"),
            "output_dir": str(root / "store"),
            "encoder": {
                "_component_": "torchtune_speech.encoders.seamless_m4t_v2_encoder",
                "path": str(root / "model"),
                "layer": SHAPES[options.size]["speech_encoder_layers"],
                "dtype": name,
            },
            "device": options.device,
            "dtype": name,
            "batch_seconds": 120 if options.device == "cpu" else 480,
            "num_workers": 2 if options.device == "cpu" else 8,
        }
    )
    recipe = extract_features.ExtractFeaturesRecipe(cfg)
    recipe.setup(cfg)
    return recipe


def run(recipe: extract_features.ExtractFeaturesRecipe, root: Path) -> Path:
    """Extract into a new store; returns its folder."""
    number = next(n for n in itertools.count() if not (root / f"store{n}").exists())
    recipe.output_dir = root / f"store{number}"
    recipe.extract()
    return recipe.output_dir


def run_hf(
    model: SeamlessM4Tv2SpeechEncoder, files: Sequence[Path], batch_size: int, out: Path
) -> None:
    """What a script of a page does: read, extract features, encode, save; no more."""
    extractor = SeamlessM4TFeatureExtractor()
    for start in range(0, len(files), batch_size):
        batch = files[start : start + batch_size]
        waveforms = [soundfile.read(file, dtype="float32")[0] for file in batch]
        inputs = extractor(waveforms, sampling_rate=RATE, return_tensors="pt").to(model.device)
        mask = inputs["attention_mask"]
        projected = model.feature_projection(inputs["input_features"])
        hidden = model.encoder(projected, attention_mask=mask)
        for file, frames, length in zip(batch, hidden, mask.sum(1).tolist(), strict=True):
            save_file({"frames": frames[:length].cpu()}, out / f"{file.stem}.safetensors")


def largest_difference(store: FeatureStore, out: Path, files: Sequence[Path]) -> float:
    """Between our frames and theirs, over all utterances."""
    largest = 0.0
    for file in files:
        theirs = load_file(out / f"{file.stem}.safetensors")["frames"].float()
        ours = store[file.name].float()
        if ours.shape != theirs.shape:
            raise SystemExit(f"{file.name}: {list(ours.shape)} and {list(theirs.shape)} frames")
        largest = max(largest, (ours - theirs).abs().max().item())
    return largest


Batches = list[list[extract_features.Job]]


def batches_of(recipe: extract_features.ExtractFeaturesRecipe) -> Batches:
    """The batches that the recipe makes."""
    jobs = [job.measure() for job in recipe.jobs]
    return list(extract_features.make_batches(jobs, recipe.batch_seconds))


def padding(batches: Batches) -> float:
    """Share of what is encoded that is padding."""
    padded = sum(len(b) * max(job.seconds for job in b) for b in batches)
    return 1 - sum(job.seconds for b in batches for job in b) / padded


def time_filter_bank(recipe: extract_features.ExtractFeaturesRecipe, batches: Batches) -> float:
    """Seconds of the filter bank alone."""
    waveforms: list[list[Tensor]] = [[load_audio(j.path) for j in b] for b in batches]
    filter_bank = recipe.encoder.filter_bank
    return seconds(lambda: [filter_bank(w) for w in waveforms], filter_bank.window.device)


def summary(
    times: dict[str, float], audio_s: float, filter_bank_s: float, padded: float, hf_batch: int
) -> dict[str, Any]:
    """The figures of the section."""
    one, many = (times[f"Hugging Face, batch {n}"] for n in (1, hf_batch))
    return {
        "ratio_vs_hf": round(min(one, many) / times["ours"], 2),
        "ratio_vs_hf_batch1": round(one / times["ours"], 2),
        f"ratio_vs_hf_batch{hf_batch}": round(many / times["ours"], 2),
        "times_real_time": round(audio_s / times["ours"], 1),
        "padding": round(padded, 4),
        "share of time in filter bank": round(filter_bank_s / times["ours"], 4),
        "seconds of audio": round(audio_s, 1),
    }


if __name__ == "__main__":
    main()
