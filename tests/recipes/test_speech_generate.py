"""One audio file and an instruction: the answer is that of the same audio in a data set."""

import json

import numpy as np
import pytest
import soundfile
from tiny_world import make_llm, write_config

from torchtune_speech.files import read_jsonl

INSTRUCTION = "Say what you hear, and nothing else."


@pytest.fixture
def world(tmp_path, run_recipe):
    """Noise as speech, its filter bank in a feature store, and stage A after two steps."""
    make_llm(tmp_path / "llm")
    (tmp_path / "data").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for i in range(4):
        noise = rng.normal(size=8000 + 3000 * i) * 0.1
        soundfile.write(tmp_path / "data" / f"{i}.wav", noise, 16000)
        row = {"id": str(i), "task": "asr", "audio": f"{i}.wav", "target": "The singer sleeps."}
        rows.append(row | {"instruction": INSTRUCTION})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "data" / "manifest.jsonl").write_text(text)
    where = [f"manifest={tmp_path / 'data' / 'manifest.jsonl'}"]
    where += [f"output_dir={tmp_path / 'data' / 'features'}"]
    where += ["dtype=fp32"]
    assert run_recipe("extract_features", "--config", "nano/extract_features", *where)[0] == 0
    for recipe in ("projector", "speech_generate"):
        write_config(tmp_path, recipe)
    words = [f"output_dir={tmp_path / 'A'}", "max_steps=2", "eval_dataset=null", "num_workers=0"]
    words += ["projector.in_dim=160", "learning_rate.projector.lr=0.1", "dataset.tasks=[asr]"]
    words += ["learning_rate.projector.warmup_steps=0"]
    code, _, err = run_recipe("projector", "--config", tmp_path / "projector.yaml", *words)
    assert code == 0, err
    return tmp_path


def test_one_file_is_answered_as_in_a_data_set(world, run_recipe):
    words = ["--config", world / "speech_generate.yaml", "projector.in_dim=160"]
    words += [f"projector_checkpoint={world / 'A'}", "max_new_tokens=12"]
    output = world / "predictions.jsonl"
    code, _, err = run_recipe("speech_generate", *words, f"output={output}", "batch_size=4")
    assert code == 0, err
    predictions = [row["prediction"] for row in read_jsonl(output)]
    assert len(set(predictions)) > 1  # it does listen
    for i, prediction in enumerate(predictions):
        audio = ["dataset=null", f"audio={world / 'data' / f'{i}.wav'}"]
        code, out, err = run_recipe("speech_generate", *words, *audio, f"instruction={INSTRUCTION}")
        assert code == 0, err
        assert out == f"{prediction}\n"


def test_a_file_shorter_than_a_frame_is_answered(world, run_recipe):
    soundfile.write(world / "short.wav", np.zeros(10), 16000)
    words = ["--config", world / "speech_generate.yaml", "projector.in_dim=160", "dataset=null"]
    words += [f"projector_checkpoint={world / 'A'}", f"audio={world / 'short.wav'}"]
    code, out, err = run_recipe("speech_generate", *words, f"instruction={INSTRUCTION}")
    assert code == 0, err
    assert out.count("\n") >= 1


def test_a_killed_run_goes_on_where_it_stopped(world, run_recipe, recipe_module, monkeypatch):
    words = ["--config", world / "speech_generate.yaml", "projector.in_dim=160", "batch_size=2"]
    words += [f"projector_checkpoint={world / 'A'}", f"output={world / 'out.jsonl'}"]
    assert run_recipe("speech_generate", *words)[0] == 0
    whole = read_jsonl(world / "out.jsonl")
    (world / "out.jsonl").unlink()
    recipe = recipe_module("speech_generate")
    predict, decoded = recipe.predict, []

    def run(stop_after):
        def counted(*args, **kwargs):
            for number, batch in enumerate(predict(*args, **kwargs)):
                if number == stop_after:
                    raise KeyboardInterrupt
                decoded.extend(i for i, _ in batch)
                yield batch

        monkeypatch.setattr(recipe, "predict", counted)
        monkeypatch.setattr("sys.argv", ["speech_generate", *map(str, words)])
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            recipe.recipe_main()

    run(stop_after=1)
    assert not (world / "out.jsonl").exists()
    assert len(read_jsonl(world / "out.partial.jsonl")) == 3
    run(stop_after=None)
    assert sorted(decoded) == [0, 1, 2, 3]  # none twice
    timing = {"seconds"}
    assert [{k: v for k, v in row.items() if k not in timing} for row in whole] == [
        {k: v for k, v in row.items() if k not in timing} for row in read_jsonl(world / "out.jsonl")
    ]
    assert not (world / "out.partial.jsonl").exists()
