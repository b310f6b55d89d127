"""From a folder of audio and transcripts to a fused model, as the README says."""

import json

import numpy as np
import pytest
import soundfile
from tiny_world import SENTENCES, make_llm, write_config

from torchtune_speech import cli
from torchtune_speech.files import read_jsonl


def overrides(folder, *, hears):
    """The README's words for each stage."""
    manifest, features = folder / "mine.jsonl", folder / "mine" / "features"
    words = [f"dataset.manifest={manifest}", "dataset.where.split=train"]
    words += [f"eval_dataset.manifest={manifest}", "eval_dataset.where.split=dev"]
    # In the packaged configs eval_dataset.features is that of dataset.
    return words + ([f"{d}dataset.features={features}" for d in ("eval_", "")] if hears else [])


@pytest.mark.parametrize("translated", [False, True])
def test_a_folder_becomes_a_fused_model(translated, tmp_path, run_recipe):
    audio, mine = tmp_path / "audio", tmp_path / "mine"
    audio.mkdir()
    make_llm(tmp_path / "llm")
    rng = np.random.default_rng(0)
    for i, sentence in enumerate(SENTENCES[:6]):
        soundfile.write(audio / f"{i}.wav", rng.normal(size=9000 + 900 * i) * 0.1, 16000)
        (audio / f"{i}.txt").write_text(sentence)
        if translated:
            (audio / f"{i}.de.txt").write_text(sentence.upper())
    words = ["manifest", str(audio), str(tmp_path / "mine.jsonl"), "--dev-fraction", "0.3"]
    assert cli.main(words) in (0, None)

    def run(recipe, *words):
        code, _, err = run_recipe(recipe, "--config", write_config(tmp_path, recipe), *words)
        assert code == 0, err

    where = [f"manifest={tmp_path / 'mine.jsonl'}", f"output_dir={mine / 'features'}"]
    assert run_recipe("extract_features", "--config", "nano/extract_features", *where)[0] == 0
    small = ["max_steps=2", "num_workers=0", "projector.in_dim=160"]
    hears = overrides(tmp_path, hears=True)
    run("projector", *hears, *small, f"output_dir={mine / 'A'}")
    adapter = "null"
    if translated:
        adapter = mine / "B"
        reads = overrides(tmp_path, hears=False)
        run("lora_finetune_text", *reads, *small[:2], "mixture=null", f"output_dir={adapter}")
    start = [f"projector_checkpoint={mine / 'A'}", f"adapter_checkpoint={adapter}"]
    run("multimodal_fuse", *hears, *small, "mixture=null", *start, f"output_dir={mine / 'C'}")
    steps = read_jsonl(mine / "C" / "metrics.jsonl")
    twins = [row["source"].endswith("(text twins)") for row in steps]
    assert twins == [False, translated]

    words = [f"checkpoint={mine / 'C'}", *hears[:1], "dataset.where.split=dev", hears[-1]]
    words += [f"output={mine / 'predictions.jsonl'}", "projector.in_dim=160"]
    run("speech_generate", *words)
    predictions = f"predictions={mine / 'predictions.jsonl'}"
    code, _, err = run_recipe(
        "speech_eval", "--config", "nano/speech_eval", predictions, "output=null"
    )
    assert code == 0, err
    report = json.loads((mine / "report.json").read_text())
    assert {"asr", "st"} & report.keys() == ({"asr", "st"} if translated else {"asr"})
