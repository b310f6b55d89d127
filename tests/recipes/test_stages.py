"""The three stages, generation and scoring: in one process and two, stopped and gone on with."""

import errno
import json
import logging
import os
import pickle
import resource
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_world import make_data, make_llm, write_config

from torchtune_speech import training
from torchtune_speech.files import lock_folder, read_json, read_jsonl

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    make_llm(folder / "llm")
    make_data(folder / "data")
    return folder


def losses(folder):
    return [row["loss"] for row in read_jsonl(folder / "metrics.jsonl")]


def near_weights(one, two, atol=1e-4):
    """Whether two checkpoints hold the same parts, and nearly the same weights."""
    files = sorted(p.name for p in one.glob("*.safetensors"))
    assert files
    assert files == sorted(p.name for p in two.glob("*.safetensors"))
    pairs = [(load_file(one / f), load_file(two / f)) for f in files]
    return all((a[k] - b[k]).abs().max() <= atol for a, b in pairs for k in a)


def run_ok(tune_run, *words, cwd):
    done = tune_run(*words, cwd=cwd)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def stages(world, run):
    """A, B and C, each trained for six steps."""
    for recipe, name in (("projector", "A"), ("lora_finetune_text", "B"), ("multimodal_fuse", "C")):
        changes = (
            {"projector_checkpoint": str(world / "A"), "adapter_checkpoint": str(world / "B")}
            if name == "C"
            else {}
        )
        file = write_config(world, recipe, output_dir=str(world / name), **changes)
        assert run(recipe, "--config", file) == 0
    return world


def test_each_step_leaves_a_line(stages):
    for name in "ABC":
        rows = read_jsonl(stages / name / "metrics.jsonl")
        assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
        assert all(
            row["loss"] > 0 and row["tokens_per_second"] > 0 and row["grad_norm"] > 0
            for row in rows
        )
    assert {"lr_projector", "lr_lora"} <= rows[0].keys()
    assert any("(text twins)" in row["source"] for row in rows)


def test_checkpoints_hold_the_trained_parts(stages):
    expected = {
        "A": {"projector.safetensors", "stage.json", "state"},
        "B": {"adapter_model.safetensors", "adapter_config.json", "stage.json", "state"},
        "C": {
            "projector.safetensors",
            "adapter_model.safetensors",
            "adapter_config.json",
            "stage.json",
            "state",
        },
    }
    for name, files in expected.items():
        assert {p.name for p in (stages / name / "step_6").iterdir()} == files
        stage = read_json(stages / name / "step_6" / "stage.json")
        assert stage["step"] == 6
        assert stage["fingerprints"]["llm"]["name"] == "llm"
        assert stage["metrics"]["n"]
        # Training does not wait for a thousand draws.
        assert "intervals" not in json.dumps(stage["metrics"])
    a, c = (load_file(stages / n / "step_6" / "projector.safetensors") for n in "AC")
    assert a.keys() == c.keys()
    assert any((a[k] != c[k]).any() for k in a)


def test_generate_and_score(stages, run, capsys):
    file = write_config(
        stages, "speech_generate", checkpoint=str(stages / "C"), output=str(stages / "p.jsonl")
    )
    assert run("speech_generate", "--config", file) == 0
    rows, manifest = (read_jsonl(stages / name) for name in ("p.jsonl", "data/manifest.jsonl"))
    assert [row["id"] for row in rows] == [row["id"] for row in manifest]
    one_by_one = ["batch_size=1", f"output={stages / 'p1.jsonl'}"]
    assert run("speech_generate", "--config", file, *one_by_one) == 0
    singly = read_jsonl(stages / "p1.jsonl")
    assert [r["prediction"] for r in singly] == [r["prediction"] for r in rows]
    words = [f"predictions={stages / 'p.jsonl'}", f"output={stages / 'report.json'}"]
    capsys.readouterr()
    assert run("speech_eval", "--config", "nano/speech_eval", *words) == 0
    assert "wer" in capsys.readouterr().out.lower()
    assert read_json(stages / "report.json")["n"]["asr"] == 8


@pytest.mark.parametrize(
    ("recipe", "name", "shard_llm"),
    [
        ("lora_finetune_text", "B", True),
        ("multimodal_fuse", "C", True),
        ("multimodal_fuse", "C", False),
    ],
)
def test_two_processes_take_the_steps_of_one(stages, tune_run, recipe, name, shard_llm):
    out = stages / f"{name}-two-{shard_llm}"
    extra = [f"output_dir={out}", "gradient_accumulation_steps=2", "eval_samples=2"]
    extra += [f"shard_llm={shard_llm}"]
    run_ok(
        tune_run,
        "--nproc_per_node",
        "2",
        recipe,
        "--config",
        stages / f"{recipe}.yaml",
        *extra,
        cwd=stages,
    )
    assert losses(out) == pytest.approx(losses(stages / name), rel=1e-4)
    assert near_weights(stages / name / "step_6", out / "step_6")


@pytest.fixture(scope="module")
def noisy(stages, run):
    """Stage C with dropout and masks, six steps at one go: its config and its folder."""
    cfg = yaml.safe_load((stages / "multimodal_fuse.yaml").read_text())
    cfg["projector"]["dropout"] = cfg["model"]["lora_dropout"] = 0.1
    cfg["spec_augment"] = {"time_masks": 1, "time_width": 4, "freq_masks": 1, "freq_width": 3}
    cfg["output_dir"] = str(stages / "C-noisy")
    file = stages / "noisy.yaml"
    file.write_text(yaml.safe_dump(cfg))
    assert run("multimodal_fuse", "--config", file) == 0
    assert losses(stages / "C-noisy") != losses(stages / "C")
    return file, stages / "C-noisy"


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_run_that_is_stopped_goes_on_as_if_it_had_not_been(noisy, run, capsys, num_workers):
    file, whole = noisy
    out = whole.with_name(f"C-stopped-{num_workers}")
    words = ["multimodal_fuse", "--config", file, f"output_dir={out}", f"num_workers={num_workers}"]
    assert run(*words, stop_after=3) == 143
    assert losses(out) == losses(whole)[:3]
    capsys.readouterr()
    assert run(*words) == 1
    assert "resume=true" in capsys.readouterr().err
    assert run(*words, "max_steps=2", "resume=true") == 1
    assert "max_steps: 2, but" in capsys.readouterr().err
    assert run(*words, "resume=true") == 0
    assert losses(out) == losses(whole)
    assert near_weights(whole / "step_6", out / "step_6", atol=0)


def test_resume_needs_the_checkpoints_of_earlier_stages_no_more(noisy, run):
    file, whole = noisy
    out = whole.with_name("C-alone")
    shutil.copytree(whole, out)
    words = ["projector_checkpoint=gone", "adapter_checkpoint=gone", "max_steps=7", "resume=true"]
    assert run("multimodal_fuse", "--config", file, f"output_dir={out}", *words) == 0
    assert len(losses(out)) == 7


def evaluations(folder):
    """Steps and scores; how long an example took differs from run to run."""
    return [(row["step"], row["report"]) for row in read_jsonl(folder / "evaluations.jsonl")]


@pytest.mark.parametrize(
    ("recipe", "name"),
    [("projector", "A"), ("lora_finetune_text", "B"), ("multimodal_fuse", "C")],
)
def test_stopped_at_its_last_step_a_run_is_evaluated_when_it_goes_on(stages, run, recipe, name):
    out = stages / f"{name}-stopped-last"
    words = [recipe, "--config", stages / f"{recipe}.yaml", f"output_dir={out}"]
    assert run(*words, stop_after=6) == 143
    stage, whole = (d / "step_6" / "stage.json" for d in (out, stages / name))
    assert read_json(stage)["evaluation_due"] and not read_json(stage)["metrics"]
    assert not (out / "evaluations.jsonl").exists()
    assert run(*words, "resume=true") == 0
    assert evaluations(out) == evaluations(stages / name)
    assert read_json(stage)["metrics"] == read_json(whole)["metrics"]
    assert not read_json(stage)["evaluation_due"] and not read_json(whole)["evaluation_due"]
    assert near_weights(stages / name / "step_6", out / "step_6", atol=0)


@pytest.mark.parametrize(
    ("recipe", "name"),
    [("projector", "A"), ("lora_finetune_text", "B"), ("multimodal_fuse", "C")],
)
def test_an_evaluation_that_fails_loses_no_step(stages, run, monkeypatch, recipe, name):
    def fail(*args, **kwargs):
        raise RuntimeError("no room for beams")

    out = stages / f"{name}-evaluation-fails"
    words = [recipe, "--config", stages / f"{recipe}.yaml", f"output_dir={out}"]
    with monkeypatch.context() as broken, pytest.raises(RuntimeError, match="no room for beams"):
        broken.setattr(training, "evaluate", fail)
        run(*words)
    assert read_json(out / "step_6" / "stage.json")["evaluation_due"]
    (out / "step_6" / ".stage.0123abcd.partial.json").touch()  # killed while it told of it
    assert run(*words, "resume=true") == 0
    assert evaluations(out) == evaluations(stages / name)
    assert not list((out / "step_6").glob(".stage*"))
    assert not read_json(out / "step_6" / "stage.json")["evaluation_due"]
    assert near_weights(stages / name / "step_6", out / "step_6", atol=0)


def test_the_evaluation_of_a_step_is_made_up_for_once(stages, run):
    words = ["projector", "--config", stages / "projector.yaml", "eval_every_n_steps=2"]
    whole, out = stages / "A-every-2", stages / "A-every-2-stopped"
    assert run(*words, f"output_dir={whole}") == 0
    words.append(f"output_dir={out}")
    assert run(*words, stop_after=2) == 143
    assert run(*words, "resume=true", stop_after=3) == 143
    assert read_json(out / "step_2" / "stage.json")["metrics"] == evaluations(whole)[0][1]
    assert not read_json(out / "step_3" / "stage.json")["evaluation_due"]
    assert run(*words, "resume=true") == 0
    assert [step for step, _ in evaluations(out)] == [2, 4, 6]
    assert evaluations(out) == evaluations(whole) and losses(out) == losses(whole)


def test_the_ctc_head_is_heard_batch_by_batch(stages, run, monkeypatch):
    module, sizes = sys.modules[training.evaluate.__module__], []
    greedy = module.ctc_greedy
    monkeypatch.setattr(module, "ctc_greedy", lambda *a: sizes.append(len(a[1])) or greedy(*a))
    scores, heard = [], []
    for size in (1, 3):
        sizes.clear()
        out = stages / f"A-ctc-batches-{size}"
        words = [f"output_dir={out}", "max_steps=1", f"eval_batch_size={size}"]
        assert run("projector", "--config", stages / "projector.yaml", *words) == 0
        assert max(sizes) == size
        scores.append(evaluations(out)[0][1]["ctc"])
        heard.append(sum(sizes))
    assert scores[0] == scores[1] and heard[0] == heard[1] > 3


def test_without_dev_data_no_evaluation_is_due(stages, run):
    out = stages / "A-no-dev"
    words = [f"output_dir={out}", "eval_dataset=null"]
    assert run("projector", "--config", stages / "projector.yaml", *words, stop_after=6) == 143
    assert not read_json(out / "step_6" / "stage.json")["evaluation_due"]


def test_two_processes_make_up_for_an_evaluation(stages, run, tune_run):
    out, words = stages / "C-stopped-last-two", ["--config", stages / "multimodal_fuse.yaml"]
    words += [f"output_dir={out}", "eval_samples=2"]
    assert run("multimodal_fuse", *words, stop_after=6) == 143
    words += ["resume=true", "max_steps=7", "shard_llm=true"]
    run_ok(tune_run, "--nproc_per_node", "2", "multimodal_fuse", *words, cwd=stages)
    assert [step for step, _ in evaluations(out)] == [6, 7]
    scores = [read_json(out / f"step_{n}" / "stage.json")["metrics"] for n in (6, 7)]
    assert scores == [report for _, report in evaluations(out)] and len(losses(out)) == 7


def test_a_resumed_run_trains_through_the_same_frozen_lora(stages, run, capsys):
    lora = ["model._component_=torchtune_speech.models.lora_speech_llama3_1_from_hf"]
    lora += ["model.lora_rank=8", "model.lora_alpha=16", "model.apply_lora_to_mlp=true"]
    out = stages / "A-through-B"
    words = ["projector", "--config", stages / "projector.yaml", f"output_dir={out}", *lora]
    words += ["eval_dataset=null", "resume=true"]
    assert run(*words, f"adapter_checkpoint={stages / 'B'}", stop_after=3) == 143
    for other in ("null", stages / "C"):
        capsys.readouterr()
        assert run(*words, f"adapter_checkpoint={other}") == 1
        assert "adapter_checkpoint was another LoRA or null; go on" in capsys.readouterr().err
    shutil.copytree(stages / "B" / "step_6", stages / "B-moved")
    assert run(*words, f"adapter_checkpoint={stages / 'B-moved'}") == 0
    assert len(losses(out)) == 6
    capsys.readouterr()
    words = ["max_steps=7", "resume=true", f"adapter_checkpoint={stages / 'B'}"]
    shutil.copytree(stages / "A", stages / "A-then-B")
    words += ["--config", stages / "projector.yaml", f"output_dir={stages / 'A-then-B'}", *lora]
    assert run("projector", *words) == 1
    assert "adapter_checkpoint was another LoRA or null" in capsys.readouterr().err


def test_another_number_of_processes_may_go_on(stages, run, tune_run):
    out, words = stages / "A-grown", ["--config", stages / "projector.yaml"]
    words.append(f"output_dir={out}")
    assert run("projector", *words, stop_after=3) == 143
    words += ["resume=true", "eval_samples=2"]
    run_ok(tune_run, "--nproc_per_node", "2", "projector", *words, cwd=stages)
    assert losses(out) == pytest.approx(losses(stages / "A"), rel=1e-4)
    assert near_weights(stages / "A" / "step_6", out / "step_6")


def test_changed_settings_and_the_checkpoint_are_told_when_going_on(stages, run, caplog):
    out = stages / "A-changed"
    shutil.copytree(stages / "A", out)
    words = [f"output_dir={out}", "resume=true", "max_steps=7", "projector.dropout=0.1"]
    words += ["learning_rate.projector.lr=0.1", "eval_dataset=null", "save_every_n_steps=1"]
    with caplog.at_level(logging.INFO):
        for name in ("_check", "_run"):
            logging.getLogger(f"torchtune_speech.training.{name}").addHandler(caplog.handler)
        assert run("projector", "--config", stages / "projector.yaml", *words) == 0
    told = caplog.text
    assert f"{out}: resume=true, going on from step_6" in told
    for key in ("max_steps was 6 and is 7", "learning_rate.projector.lr was", "projector.dropout"):
        assert told.count(key) == 1, key
    # Without an evaluation of its own, it keeps the scores of the last one.
    then, now = (training.read_stage(d / "step_6")["metrics"] for d in (stages / "A", out))
    assert training.read_stage(out / "step_7")["metrics"] == then == now


@pytest.fixture(scope="module")
def broken_store(world):
    """A feature store in which the frames of one utterance are not numbers."""
    folder = world / "broken-features"
    shutil.copytree(world / "data" / "features", folder)
    (shard,) = folder.glob("*.safetensors")
    with safe_open(shard, "pt") as file:
        metadata = file.metadata()
    frames = load_file(shard)
    frames["3.wav"][2] = float("nan")
    save_file(frames, shard, metadata)
    return folder


@pytest.mark.parametrize("recipe", ["projector", "multimodal_fuse"])
def test_a_step_that_is_not_finite_stops_the_run_or_is_skipped(
    stages, run, capsys, broken_store, recipe
):
    out = stages / f"{recipe}-broken"
    words = [recipe, "--config", stages / f"{recipe}.yaml", f"dataset.features={broken_store}"]
    words += [f"output_dir={out}", "eval_dataset=null", "rows_per_step=1", "max_steps=12"]
    assert run(*words) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "loss nan" in error and "3-" in error and "on_nonfinite=skip" in error
    assert not training.list_checkpoints(out)
    assert run(*words, "on_nonfinite=skip") == 0
    rows = read_jsonl(out / "metrics.jsonl")
    skipped = [row for row in rows if "skipped_samples" in row]
    assert 0 < len(skipped) < len(rows) == 12
    for row in rows:
        bad = [i for i in row.get("skipped_samples", ()) if i.startswith("3-")]
        assert bool(bad) == (row["loss"] is None) == (row in skipped)
    weights = load_file(out / "step_12" / "projector.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_checkpoints_are_data_nothing_is_unpickled(stages, run):
    unpickled, watching = [], True

    def watch(event, arguments):  # an audit hook stays for good
        if watching and event == "pickle.find_class":
            unpickled.append(arguments)

    sys.addaudithook(watch)
    pickle.loads(pickle.dumps(Path))
    assert len(unpickled) == 1
    out = stages / "C-watched"
    shutil.copytree(stages / "C", out)
    words = [f"output_dir={out}", "max_steps=7", "resume=true", "eval_dataset=null"]
    assert run("multimodal_fuse", "--config", stages / "multimodal_fuse.yaml", *words) == 0
    output = stages / "watched.jsonl"
    file = write_config(stages, "speech_generate", checkpoint=str(out), output=str(output), limit=2)
    assert run("speech_generate", "--config", file) == 0
    watching = False
    assert len(unpickled) == 1


def test_a_full_disk_leaves_earlier_checkpoints_whole(stages, run, capsys):
    """Files may grow to 20 kB only from step 3 on, as if the disk were full."""
    out, unlimited = stages / "A-full", resource.getrlimit(resource.RLIMIT_FSIZE)
    words = ["projector", "--config", stages / "projector.yaml", f"output_dir={out}"]
    words += ["save_every_n_steps=1"]

    def fill(number):
        if number == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, unlimited[1]))

    try:
        assert run(*words, after_step=fill) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{out / 'step_3'}: cannot be written: " in error and "resume=true" in error
    assert [p.name for p in training.list_checkpoints(out)] == ["step_1", "step_2"]
    assert not list(out.glob(".*"))
    assert run(*words, "resume=true") == 0
    assert losses(out) == losses(stages / "A")
    assert near_weights(stages / "A" / "step_6", out / "step_6", atol=0)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ESTALE, errno.EIO])
@pytest.mark.parametrize("call", ["mkdir", "replace"])
def test_a_disk_that_is_lost_leaves_earlier_checkpoints_whole(
    stages, run, capsys, monkeypatch, call, code
):
    """Permission withdrawn, mounted read-only, a stale NFS handle: from step 3 on."""
    out = stages / f"A-lost-{call}-{code}"
    words = ["projector", "--config", stages / "projector.yaml", f"output_dir={out}"]
    words += ["save_every_n_steps=1", "eval_dataset=null"]
    real = getattr(os, call)

    def lost(path, *arguments, **options):
        if "step_3" in str(path):
            raise OSError(code, os.strerror(code), str(path))
        return real(path, *arguments, **options)

    def lose(number):
        if number == 3:
            monkeypatch.setattr(os, call, lost)

    assert run(*words, after_step=lose) == 1
    monkeypatch.setattr(os, call, real)
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{out / 'step_3'}: cannot be written: " in error and os.strerror(code) in error
    assert [p.name for p in training.list_checkpoints(out)] == ["step_1", "step_2"]
    assert run(*words, "resume=true") == 0
    assert losses(out) == losses(stages / "A")
    assert near_weights(stages / "A" / "step_6", out / "step_6", atol=0)


def test_a_disk_with_no_room_for_checkpoints_is_noticed_first(stages, run, capsys, monkeypatch):
    out = stages / "A-no-room"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 100_000))
    words = ["projector", "--config", stages / "projector.yaml", f"output_dir={out}"]
    assert run(*words, "save_every_n_steps=1") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"output_dir: {out} has 0.0001 GB free, its checkpoints need " in error
    assert not out.exists()


@pytest.mark.parametrize("recipe", ["projector", "lora_finetune_text", "multimodal_fuse"])
def test_two_runs_do_not_share_a_folder(stages, run, capsys, recipe):
    out = stages / f"{recipe}-shared"
    with lock_folder(out):
        assert run(recipe, "--config", stages / f"{recipe}.yaml", f"output_dir={out}") == 1
        assert f"{out}: another run is writing there" in capsys.readouterr().err
        assert not list(out.iterdir())


def test_keep_last_checkpoints(stages, run):
    out = stages / "A-kept"
    words = [f"output_dir={out}", "save_every_n_steps=1", "keep_last=2", "eval_dataset=null"]
    assert run("projector", "--config", stages / "projector.yaml", *words, "max_steps=4") == 0
    assert sorted(p.name for p in out.glob("step_*")) == ["step_3", "step_4"]


def test_stage_c_begins_where_a_and_b_ended(stages, run):
    out = stages / "C-still"
    words = [f"output_dir={out}", "max_steps=2", "eval_dataset=null"]
    words += ["learning_rate.projector.lr=0", "learning_rate.lora.lr=0"]
    words.append("optimizer.weight_decay=0")
    assert run("multimodal_fuse", "--config", stages / "multimodal_fuse.yaml", *words) == 0
    for name, file in (("A", "projector"), ("B", "adapter_model")):
        before, after = (
            load_file(d / f"{file}.safetensors") for d in (stages / name / "step_6", out / "step_2")
        )
        assert before.keys() == after.keys()
        assert all((before[k] == after[k]).all() for k in before)


def test_the_first_steps_may_train_on_the_ctc_loss_alone(stages, run, capsys):
    out = stages / "A-ctc"
    words = ["projector", "--config", stages / "projector.yaml", f"output_dir={out}"]
    words += ["ctc_only_steps=3", "ctc_weight=0.3", "eval_dataset=null", "mixture=null"]
    capsys.readouterr()
    assert run(*words, "dataset.tasks=[asr,mt]") == 1
    assert "dataset: sample 0-mt has no speech" in capsys.readouterr().err
    assert run(*words, "dataset.tasks=[asr]") == 0
    rows = read_jsonl(out / "metrics.jsonl")
    assert [row["loss"] == row["ctc_loss"] for row in rows] == [True] * 3 + [False] * 3
    words = [f"output_dir={out}-blank" if w == f"output_dir={out}" else w for w in words]
    assert run(*words, "dataset.tasks=[asr]", "embedding_blank=' king'") == 0
    other = read_jsonl(stages / "A-ctc-blank" / "metrics.jsonl")
    assert rows[0]["loss"] == other[0]["loss"]
    assert rows[0]["grad_norm"] != other[0]["grad_norm"]


KILL_GROUP = '''
import os
import subprocess
from multiprocessing import active_children, connection


class KillGroup:
    """A metric logger through which all processes of a run get SIGTERM from outside."""

    def __init__(self):
        os.setpgrp()

    def log_dict(self, payload, step):
        if step == 2:
            # Not os.killpg: workers that get it from their parent end as if all were well.
            workers = [worker.sentinel for worker in active_children()]
            kill = ["sh", "-c", f"kill -TERM -{os.getpgrp()}"]
            subprocess.run(kill, start_new_session=True, check=True)
            connection.wait(workers, timeout=0.5)  # does one end?

    def close(self):
        pass
'''


def test_sigterm_to_the_process_group_ends_in_a_checkpoint(stages, tune_run):
    (stages / "kill_group.py").write_text(KILL_GROUP)
    out = stages / "A-stopped"
    words = [f"output_dir={out}", "num_workers=1", "max_steps=30", "eval_every_n_steps=2"]
    done = tune_run(
        "projector",
        "--config",
        stages / "projector.yaml",
        "metric_logger._component_=kill_group.KillGroup",
        *words,
        cwd=stages,
        path=(ROOT, ROOT / "recipes", stages),
    )
    assert done.returncode == 143, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    step = len(losses(out))
    assert step >= 2
    assert [p.name for p in out.glob("step_*")] == [f"step_{step}"]
    assert not (out / "evaluations.jsonl").exists()  # no time for that


def test_a_projector_of_another_size_is_refused(stages, run, capsys):
    words = ["projector.out_dim=16", f"output_dir={stages / 'X'}"]
    assert run("projector", "--config", stages / "projector.yaml", *words) == 1
    assert "projector.out_dim" in capsys.readouterr().err
    assert not (stages / "X").exists()
