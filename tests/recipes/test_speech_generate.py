"""One audio file and an instruction: the answer is that of the same audio in a data set."""

import json

import numpy as np
import pytest
import soundfile
import torch
from tiny_world import make_chat, make_llm, write_config

from torchtune_speech.cli import main
from torchtune_speech.data import read_mcif_output
from torchtune_speech.files import read_json, read_jsonl, write_json
from torchtune_speech.modules import nearest_tokens

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


def test_a_file_may_be_read_without_its_pads(world, run_recipe):
    """As a data set on what `torchtune-speech keep` keeps, whole and in windows."""
    mapper = write_config(world, "speechmapper", output_dir=str(world / "M"), eval_dataset=None)
    words = ["--config", mapper, "max_steps=1", "projector.in_dim=160"]
    assert run_recipe("speechmapper", *words)[0] == 0
    kept = world / "kept.parquet"
    words = ["--checkpoint", world / "M", "--features", world / "data" / "features"]
    assert main(["keep", *map(str, words), "--output", str(kept)]) == 0
    words = ["--config", world / "speech_generate.yaml", "projector.in_dim=160"]
    words += [f"projector_checkpoint={world / 'M'}", "max_new_tokens=12"]
    answers = {}
    for name, more in (("all", []), ("kept", [f"dataset.kept={kept}"])):
        output = world / f"{name}.jsonl"
        code, _, err = run_recipe("speech_generate", *words, f"output={output}", *more)
        assert code == 0, err
        answers[name] = [row["prediction"] for row in read_jsonl(output)]
    assert answers["all"] != answers["kept"]
    words += ["dataset=null", f"instruction={INSTRUCTION}", f"keep_checkpoint={world / 'M'}"]
    for i, prediction in enumerate(answers["kept"]):
        audio = f"audio={world / 'data' / f'{i}.wav'}"
        code, out, err = run_recipe("speech_generate", *words, audio)
        assert code == 0, err
        assert out == f"{prediction}\n"
    for long_answer in ("join", "whole"):
        windows = ["window_s=0.4", f"long_answer={long_answer}"]
        assert run_recipe("speech_generate", *words, audio, *windows)[0] == 0
    code, _, err = run_recipe("speech_generate", *words, audio, f"keep_checkpoint={world / 'A'}")
    assert code == 1 and "written by recipe projector, whose projector need not know" in err


def test_a_file_shorter_than_a_frame_is_answered(world, run_recipe):
    soundfile.write(world / "short.wav", np.zeros(10), 16000)
    words = ["--config", world / "speech_generate.yaml", "projector.in_dim=160", "dataset=null"]
    words += [f"projector_checkpoint={world / 'A'}", f"audio={world / 'short.wav'}"]
    code, out, err = run_recipe("speech_generate", *words, f"instruction={INSTRUCTION}")
    assert code == 0, err
    assert out.strip()


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


def test_predictions_of_other_templates_are_not_gone_on_with(
    world, run_recipe, recipe_module, monkeypatch
):
    """Whose file has the same name."""
    templates = world / "own.yaml"
    words = ["--config", world / "speech_generate.yaml", "projector.in_dim=160", "batch_size=2"]
    words += [f"projector_checkpoint={world / 'A'}", f"output={world / 'out.jsonl'}"]
    words += [f"dataset.templates={templates}"]
    recipe, decoded = recipe_module("speech_generate"), []
    predict = recipe.predict

    def first_batch(*args, **kwargs):
        for batch in predict(*args, **kwargs):
            decoded.extend(i for i, _ in batch)
            yield batch
            raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "predict", first_batch)
    monkeypatch.setattr("sys.argv", ["speech_generate", *map(str, words)])
    for text in ("One", "One", "Two"):
        templates.write_text(f"wrapping: {{speech: '{text} {{speech}} {{instruction}}'}}\n")
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            recipe.recipe_main()
    # The second run goes on, the third begins anew.
    assert decoded[:2] == decoded[4:] and sorted(decoded[:4]) == [0, 1, 2, 3]


def test_a_long_reference_makes_no_prompt_too_long(world, run_recipe):
    manifest = world / "data" / "manifest.jsonl"
    rows = [row | {"target": "The singer sleeps. " * 60} for row in read_jsonl(manifest)]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--config", world / "speech_generate.yaml", "projector.in_dim=160"]
    words += [f"projector_checkpoint={world / 'A'}", f"output={world / 'out.jsonl'}"]
    code, _, err = run_recipe("speech_generate", *words, "max_seq_len=100")
    assert code == 0, err
    code, _, err = run_recipe("speech_generate", *words, "max_seq_len=30")
    assert code == 1 and "tokens, max_seq_len is 30" in err


@pytest.mark.parametrize("beams", [1, 3])
def test_two_processes_give_the_same_text(world, run_recipe, tune_run, beams):
    words = ["--config", world / "speech_generate.yaml", "projector.in_dim=160", "batch_size=1"]
    words += [f"projector_checkpoint={world / 'A'}", "max_new_tokens=12", f"num_beams={beams}"]
    assert run_recipe("speech_generate", *words, f"output={world / 'one.jsonl'}")[0] == 0
    two = ["--nproc_per_node", "2", "speech_generate", *words]
    for name, more in (("shared", []), ("sharded", ["shard_llm=true"])):
        done = tune_run(*two, f"output={world / f'{name}.jsonl'}", *more, cwd=world)
        assert done.returncode == 0, done.stderr[-2000:]
    assert not list(world.glob("*.partial*"))
    one, shared, sharded = (
        [{k: v for k, v in row.items() if k != "seconds"} for row in read_jsonl(world / file)]
        for file in ("one.jsonl", "shared.jsonl", "sharded.jsonl")
    )
    assert len({row["prediction"] for row in one}) > 1
    assert one == shared == sharded


def test_the_llm_may_read_the_nearest_tokens(world, run_recipe, recipe_module, monkeypatch):
    recipe = recipe_module("speech_generate")
    predict, read = recipe.predict, []

    def look(model, *args, **kwargs):
        frames = torch.randn(9, 160, generator=torch.Generator().manual_seed(0))
        vectors = model.projector(frames, torch.tensor([4, 5]))
        read.append((vectors, model.decoder.tok_embeddings.weight))
        return predict(model, *args, **kwargs)

    monkeypatch.setattr(recipe, "predict", look)
    words = ["--config", world / "speech_generate.yaml", "projector.in_dim=160"]
    words += [f"projector_checkpoint={world / 'A'}", f"output={world / 'out.jsonl'}"]
    code, _, err = run_recipe("speech_generate", *words, "nearest_tokens=true")
    assert code == 1 and "/A tells of no stage 1 of SpeechMapper" in err
    chat = make_chat(world / "llm")
    pad = chat.special_tokens["<|reserved_special_token_1|>"]
    stage_1 = {"projector": "of M", "pad_token": pad, "normalizer": "none"}
    stage = read_json(world / "A" / "step_2" / "stage.json")
    stage["fingerprints"]["stage_1"] = stage_1
    write_json(world / "A" / "step_2" / "stage.json", stage)
    for nearest in (False, True):
        argv = ["speech_generate", *map(str, words), f"nearest_tokens={nearest}"]
        monkeypatch.setattr("sys.argv", argv)
        with pytest.raises(SystemExit) as end:
            recipe.recipe_main()
        assert not end.value.code
    (vectors, _), (rounded, table) = read
    nearest = nearest_tokens(vectors, table).tolist()
    expected = [pad if token in chat.special_ids else token for token in nearest]
    assert torch.equal(rounded, table[expected])
    assert not torch.equal(rounded, vectors)
    code, _, err = run_recipe("speech_generate", *words, "nearest_tokens=true", "shard_llm=true")
    assert code == 1 and "error: nearest_tokens: needs the whole embedding table" in err


def test_text_can_be_answered_without_lora(world, run_recipe, tmp_path):
    """With a LoRA that changes the text; speech is answered with it all the same."""
    rows = [{"id": f"t{i}", "task": "mt", "source_text": "Go.", "target": "x"} for i in range(2)]
    text = "".join(json.dumps(row | {"target_lang": "de"}) + "\n" for row in rows)
    (world / "data" / "text.jsonl").write_text(text)
    write_config(world, "lora_finetune_text")
    train = ["--config", world / "lora_finetune_text.yaml", f"output_dir={world / 'B'}"]
    train += [f"dataset.manifest={world / 'data' / 'text.jsonl'}", "eval_dataset=null"]
    train += ["dataset.tasks=[mt]", "mixture=null", "max_steps=4", "num_workers=0"]
    train += ["learning_rate.lora.lr=0.5", "learning_rate.lora.warmup_steps=0"]
    code, _, err = run_recipe("lora_finetune_text", *train)
    assert code == 0, err
    words = ["--config", world / "speech_generate.yaml", "projector.in_dim=160"]
    words += [f"projector_checkpoint={world / 'A'}", f"adapter_checkpoint={world / 'B'}"]
    words += [
        f"dataset.manifest=[{world / 'data' / 'text.jsonl'},{world / 'data' / 'manifest.jsonl'}]"
    ]
    runs = {"with": [], "without": ["lora_on_text=false"], "never": ["adapter_checkpoint=null"]}
    texts = {}
    for name, more in runs.items():
        code, _, err = run_recipe("speech_generate", *words, f"output={world / name}.jsonl", *more)
        assert code == 0, err
        texts[name] = [row["prediction"] for row in read_jsonl(world / f"{name}.jsonl")]
    assert texts["without"][:2] == texts["never"][:2] != texts["with"][:2]
    assert texts["without"][2:] == texts["with"][2:] != texts["never"][2:]


def test_answers_to_windows_are_joined(world, run_recipe):
    """A long recording: windows by the command, features, one joined answer."""
    cut, store = world / "data" / "cut.jsonl", world / "data" / "cut"
    rng = np.random.default_rng(1)
    soundfile.write(world / "data" / "long.wav", rng.normal(size=16000 * 5) * 0.1, 16000)
    row = {"id": "long", "task": "asr", "audio": "long.wav", "target": "All of it."}
    question = row | {"id": "q", "task": "sqa", "question": "Who?", "target": "Me."}
    (world / "data" / "long.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(question))
    main(["segment", str(world / "data" / "long.jsonl"), str(cut), "--window=2", "--at=fixed"])
    words = [f"manifest={cut}", f"output_dir={store}", "dtype=fp32"]
    code, _, err = run_recipe("extract_features", "--config", "nano/extract_features", *words)
    assert code == 0, err
    words = ["--config", world / "speech_generate.yaml", "projector.in_dim=160"]
    words += [f"dataset.manifest={cut}", f"dataset.features={store}", "max_new_tokens=6"]
    words += ["dataset.require_target=false", f"output={world / 'long.jsonl'}"]
    code, _, err = run_recipe("speech_generate", *words, f"projector_checkpoint={world / 'A'}")
    assert code == 0, err
    joined, answered = read_jsonl(world / "long.jsonl")
    assert joined["id"] == "long" and joined["duration_s"] == pytest.approx(5.0)
    parts = [part["prediction"] for part in joined["segments"]]
    assert len(parts) == 3
    assert joined["prediction"].split() == " ".join(parts).split()
    assert answered["id"] == "q" and answered["duration_s"] == pytest.approx(5.0)
    code, _, err = run_recipe(
        "speech_generate", *words, f"projector_checkpoint={world / 'A'}", "limit=1"
    )
    assert code == 0, err
    assert read_jsonl(world / "long.jsonl") == [
        {**joined, "seconds": read_jsonl(world / "long.jsonl")[0]["seconds"]}
    ]
    scores = ["allow_missing=true", f"predictions={world / 'long.jsonl'}"]
    scores += [f"manifest={world / 'data' / 'long.jsonl'}"]
    code, _, err = run_recipe("speech_eval", "--config", "nano/speech_eval", *scores)
    assert code == 0, err


def test_one_long_file_is_heard_in_windows(world, run_recipe):
    rng = np.random.default_rng(2)
    soundfile.write(world / "long.wav", rng.normal(size=16000 * 9) * 0.1, 16000)
    words = ["--config", world / "speech_generate.yaml", "projector.in_dim=160", "dataset=null"]
    words += [f"projector_checkpoint={world / 'A'}", f"audio={world / 'long.wav'}", "window_s=4"]
    words += ["max_seq_len=300"]
    answers = {}
    for kind in ("auto", "join", "whole"):
        for instruction in ("Transcribe the English content.", "Who speaks?"):
            more = [f"instruction={instruction}", f"long_answer={kind}"]
            code, out, err = run_recipe("speech_generate", *words, *more)
            assert code == 0, err
            answers[kind, instruction[:3]] = out
    words += ["instruction=Who?", "long_answer=whole", "max_seq_len=160"]
    code, _, err = run_recipe("speech_generate", *words)
    assert code == 1 and "max_seq_len is 160" in err
    assert answers["auto", "Tra"] == answers["join", "Tra"] != answers["whole", "Tra"]
    assert answers["auto", "Who"] == answers["whole", "Who"] != answers["join", "Who"]


def test_the_official_output_holds_every_sample(world, run_recipe):
    samples = "".join(
        f"<sample id='{i}'><audio_path>{i}.wav</audio_path>"
        f"<instruction>{text}</instruction></sample>"
        for i, text in enumerate(["Übersetze den englischem Inhalt nach Deutsch."] * 2)
    )
    source = f"<testset name='x'><task track='short' text_lang='de'>{samples}</task></testset>"
    (world / "data" / "source.xml").write_text(source)
    words = ["--config", world / "speech_generate.yaml", "projector.in_dim=160"]
    words += [f"projector_checkpoint={world / 'A'}", f"output={world / 'out.jsonl'}"]
    words += ["dataset.require_target=false", f"mcif_output={world / 'out.xml'}"]
    code, _, err = run_recipe(
        "speech_generate", *words, f"dataset.manifest={world / 'data' / 'source.xml'}"
    )
    assert code == 0, err
    written = read_mcif_output(world / "out.xml", "short", "de")
    rows = read_jsonl(world / "out.jsonl")
    assert list(written.texts) == ["0", "1"]
    assert [text.strip() for text in written.texts.values()] == [
        row["prediction"].strip() for row in rows
    ]
    code, _, err = run_recipe("speech_generate", *words)
    assert code == 1 and "mcif_output: the samples are not those" in err
    for more in (
        "limit=1",
        "dataset.on_too_long=skip",
        "dataset.tasks=[asr]",
        "dataset.where={id: [0]}",
    ):
        code, _, err = run_recipe("speech_generate", *words, more)
        assert code == 1 and f"mcif_output: {more.split('=')[0]} may leave samples out" in err
