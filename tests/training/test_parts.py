"""Schedules, logs, checkpoints, signals: the small parts of a training run."""

import dataclasses
import json
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from tiny_world import make_data, make_llm, make_tokenizer
from torch import nn

from torchtune_speech import config
from torchtune_speech.data import (
    AudioCut,
    CharacterLabels,
    Llama3ChatFormat,
    Sample,
    TokenLabels,
    ctc_labels,
)
from torchtune_speech.datasets import at_speeds, speech_dataset
from torchtune_speech.errors import InputError
from torchtune_speech.files import read_jsonl
from torchtune_speech.nano._tokenizer import write_tokenizer
from torchtune_speech.training import (
    Process,
    StopSignal,
    TrainingLog,
    _run,
    build_plan,
    check_checkpoint_fits,
    check_embedding_target,
    find_checkpoint,
    flat_scores,
    is_due,
    learning_rate,
    list_checkpoints,
    llm_fingerprint,
    load_state,
    resume_point,
    save_checkpoint,
    seed_step,
    warn_if_incoherent,
)


def test_learning_rate_warms_up_to_its_peak_and_falls_to_zero():
    rates = [learning_rate(s, lr=2.0, max_steps=100, warmup_steps=10) for s in range(101)]
    assert rates[0] == pytest.approx(0.2)  # the first step is not wasted on a rate of 0
    assert rates[9] == rates[10] == 2.0
    assert rates[55] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.0)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))


def test_a_constant_schedule_stays():
    rates = {learning_rate(s, lr=1.0, max_steps=9, schedule="constant") for s in range(9)}
    assert rates == {1.0}
    with pytest.raises(InputError, match="'linear'"):
        learning_rate(0, lr=1.0, max_steps=9, schedule="linear")


def metrics(loss=1.0):
    return {"loss": loss, "tokens_per_second": 10.0, "source": "all"}


def test_a_resumed_log_drops_the_steps_that_are_done_again(tmp_path):
    with TrainingLog(tmp_path, max_steps=5) as log:
        for step in (1, 2, 3):
            log.step(step, metrics(float(step)))
        log.evaluation(3, {"asr": {"wer": 0.5}}, [])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    with TrainingLog(tmp_path, max_steps=5, first_step=2) as log:
        log.step(3, metrics(30.0))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(r["step"], r["loss"]) for r in rows] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert (tmp_path / "evaluations.jsonl").read_text() == ""


def test_an_evaluation_that_is_repeated_takes_the_place_of_the_first(tmp_path):
    with TrainingLog(tmp_path, max_steps=5) as log:
        for step, wer in ((2, 0.75), (4, 0.5), (4, 0.25)):
            log.evaluation(step, {"asr": {"wer": wer}}, [])
    rows = read_jsonl(tmp_path / "evaluations.jsonl")
    assert [(r["step"], r["report"]["asr"]["wer"]) for r in rows] == [(2, 0.75), (4, 0.25)]


def test_line_separators_of_other_kinds_in_predictions_cut_no_line(tmp_path):
    examples = [{"task": "asr", "target_lang": "en", "target": "a\u2028b", "prediction": "c\x85d"}]
    for first in (0, 2):
        with TrainingLog(tmp_path, max_steps=5, first_step=first) as log:
            log.evaluation(first + 2, {"asr": {"wer": 0.5}}, examples)
    rows = read_jsonl(tmp_path / "evaluations.jsonl")
    assert [(r["step"], r["examples"]) for r in rows] == [(2, examples), (4, examples)]


def test_only_the_main_process_writes(tmp_path):
    with TrainingLog(tmp_path / "run", max_steps=5, enabled=False) as log:
        log.step(1, metrics())
        log.evaluation(1, {}, [])
    assert not (tmp_path / "run").exists()


def test_a_loss_is_logged_with_enough_digits_to_tell_float32_apart(tmp_path):
    a = torch.tensor(2.3456789)
    b = torch.nextafter(a, torch.tensor(3.0))
    with TrainingLog(tmp_path, max_steps=2) as log:
        log.step(1, metrics(a.item()))
        log.step(2, metrics(b.item()))
    one, two = [json.loads(line)["loss"] for line in open(tmp_path / "metrics.jsonl")]
    assert one != two
    assert torch.tensor(one) == a


def test_flat_scores_pick_what_one_looks_at_first():
    report = {
        "asr": {"wer": 0.1, "cer": 0.05},
        "st": {"de": {"bleu": 50.0, "chrf": 60.0}},
        "sqa": {"accuracy": 0.9, "unanswerable_accuracy": None, "en": {"accuracy": 1.0}},
        "normalizer": "whisper",
        "n": {"asr": 3},
    }
    assert flat_scores(report) == {"asr_wer": 0.1, "st_de_bleu": 50.0, "sqa_accuracy": 0.9}


def make_checkpoint(folder, step, format_version=1):
    (folder / f"step_{step}").mkdir(parents=True)
    (folder / f"step_{step}" / "stage.json").write_text(json.dumps({"format": format_version}))


def test_the_newest_whole_checkpoint_is_found(tmp_path):
    for step in (2, 10, 9):
        make_checkpoint(tmp_path, step)
    (tmp_path / ".step_11.abcd.partial").mkdir()  # killed while writing
    (tmp_path / "step_12").mkdir()  # killed while removing, or copied in part
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step_2", "step_9", "step_10"]
    assert find_checkpoint(tmp_path).name == "step_10"
    assert find_checkpoint(tmp_path / "step_2").name == "step_2"
    assert resume_point(tmp_path, resume=True).name == "step_10"
    with pytest.raises(InputError, match="resume=true"):
        resume_point(tmp_path, resume=False)
    assert resume_point(tmp_path / "new", resume=True) is None


def test_checkpoints_of_a_newer_format_are_refused(tmp_path):
    make_checkpoint(tmp_path, 1, format_version=99)
    with pytest.raises(InputError, match="newer version"):
        find_checkpoint(tmp_path)


def test_is_due():
    assert [s for s in range(1, 8) if is_due(s, 3, last=s == 7)] == [3, 6, 7]
    assert [s for s in range(1, 8) if is_due(s, None, last=s == 7)] == [7]


def test_sigterm_is_remembered_and_the_old_handler_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
    assert signal.getsignal(signal.SIGTERM) == before


def test_steps_are_seeded_apart():
    def draw(*where):
        seed_step(*where)
        return torch.rand(4).tolist()

    assert draw(0, 1, 0) == draw(0, 1, 0)
    assert len({tuple(draw(*w)) for w in ((0, 1, 0), (0, 2, 0), (0, 1, 1), (1, 1, 0))}) == 4


def test_speed_copies_share_everything_but_the_audio():
    sample = Sample(id="a", task="asr", target="hello", audio=(AudioCut("a.wav"),))
    copies = at_speeds(sample, [0.9, 1.0])
    assert [(c.id, c.audio[0].key) for c in copies] == [("a~0.9", "a.wav~0.9"), ("a", "a.wav")]
    text = Sample(id="t", task="mt", target="hallo", source_text="hello")
    assert at_speeds(text, [0.9, 1.0]) == [text]
    # extract_features stores such a recording at its own speed only
    slow = dataclasses.replace(sample, audio=(AudioCut("a.wav", speed=0.9),))
    assert at_speeds(slow, [0.9, 1.0]) == [slow]


def test_character_labels_fold_and_come_back():
    labels = CharacterLabels()
    assert labels.decode(labels.encode("  Zoë's  café, 7! ")) == "zoe's cafe 7"
    assert labels.decode(labels.encode("twenty-one\ndon\u2019t")) == "twenty one don't"
    assert min(labels.encode("abc xyz 09'")) >= 1  # 0 is the blank
    assert max(labels.encode("abc xyz 09'")) < labels.size


def test_token_labels_are_the_tokens_after_the_blank(tmp_path):
    size = write_tokenizer(tmp_path)
    chat = Llama3ChatFormat(make_tokenizer(tmp_path))
    labels = TokenLabels(chat)
    assert labels.size == size + 1
    assert labels.encode("The doctor waits.") == [i + 1 for i in chat.encode("The doctor waits.")]
    assert labels.decode(labels.encode("The doctor waits.")) == "The doctor waits."
    assert ctc_labels(None, chat) is None
    with pytest.raises(InputError, match="'phones'"):
        ctc_labels("phones", chat)


class Nothing(nn.Module):
    """A model of one parameter, with what saving a projector asks of a model."""

    def __init__(self) -> None:
        super().__init__()
        self.projector = nn.Linear(3, 2)


def save(folder, step, **options):
    model = Nothing()
    groups = {"projector": dict(model.named_parameters())}
    optimizer = torch.optim.AdamW(groups["projector"].values(), **options)
    model.projector(torch.ones(3)).sum().backward()
    optimizer.step()
    save_checkpoint(
        folder,
        step,
        model=model,
        groups=groups,
        optimizer=optimizer,
        plan_state={"number": step},
        stage={},
        llm_dir="",
        process=Process(torch.device("cpu"), 0, 1),
        keep_last=2,
    )
    return groups, optimizer


def test_saving_keeps_the_last_and_removes_what_a_killed_run_left(tmp_path):
    (tmp_path / ".step_3.0123abcd.partial").mkdir()
    (tmp_path / "step_4").mkdir()
    (tmp_path / "step_4" / "projector.safetensors").write_text("half")
    for step in (2, 3, 4):
        save(tmp_path, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_3", "step_4"]


def test_a_checkpoint_is_removed_as_a_whole(tmp_path, monkeypatch):
    def killed(folder):
        raise KeyboardInterrupt

    for step in (2, 3):
        save(tmp_path, step)
    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr("shutil.rmtree", killed)
        save(tmp_path, 4)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step_3", "step_4"]
    save(tmp_path, 5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_4", "step_5"]


@pytest.mark.parametrize("fused", [False, True])
def test_the_optimizer_comes_back_as_torch_itself_would_bring_it_back(tmp_path, fused):
    groups, old = save(tmp_path, 2, fused=fused)
    ours, theirs = (
        torch.optim.AdamW(groups["projector"].values(), lr=0.5, fused=fused) for _ in range(2)
    )
    assert load_state(tmp_path / "step_2", ours, groups) == {"number": 2}
    theirs.load_state_dict(old.state_dict())
    for p in groups["projector"].values():
        assert ours.state[p].keys() == theirs.state[p].keys() == {"step", "exp_avg", "exp_avg_sq"}
        for key, value in theirs.state[p].items():
            assert torch.equal(ours.state[p][key], value)
            assert ours.state[p][key].dtype == value.dtype
    assert ours.param_groups[0]["lr"] == 0.5  # the settings are this run's


def test_a_text_twin_that_is_too_long_is_treated_as_a_sample_that_is(tmp_path):
    llm, data = make_llm(tmp_path / "llm"), make_data(tmp_path / "data")
    options = {"tokenizer": make_tokenizer(llm), "features": str(data / "features")}

    def dataset(**more):
        # One speech vector for each utterance, so that the twins are the longer ones.
        return speech_dataset(
            str(data / "manifest.jsonl"),
            output_length=lambda frames: 1,
            tasks=["st"],
            **options,
            **more,
        )

    whole = dataset(max_seq_len=999)
    limit = int(max(whole.lengths))
    assert max(whole.twin_lengths()) > limit
    plan = {"max_seq_len": limit, "rows_per_step": 2, "paired": True}
    with pytest.raises(InputError, match=r"its text twin.*max_seq_len is .*on_too_long=skip"):
        build_plan(dataset(max_seq_len=limit), **plan)
    some = build_plan(dataset(max_seq_len=limit, on_too_long="skip"), **plan)
    twins = whole.twin_lengths()
    assert some.twin_lengths.tolist() == [n if n <= limit else 0 for n in twins]
    assert any(step.is_twin for step, _ in zip(some, range(8), strict=False))


def test_each_part_of_an_llm_counts_for_its_fingerprint(tmp_path):
    llm = make_llm(tmp_path / "llm")
    first = llm_fingerprint(llm)
    file = next(llm.glob("*.safetensors"))
    whole = file.read_bytes()
    assert llm_fingerprint(llm) == first
    header = int.from_bytes(whole[:8], "little")
    for place in (8 + header, len(whole) - 1):  # the first and last weights
        changed = bytearray(whole)
        changed[place] ^= 1
        file.write_bytes(changed)
        found = llm_fingerprint(llm)
        assert found["digest"] == first["digest"]
        assert found["weights"] != first["weights"]
        stage = {"format": 1, "fingerprints": {"llm": first, "store": None}}
        (tmp_path / "step_1").mkdir(exist_ok=True)
        (tmp_path / "step_1" / "stage.json").write_text(json.dumps(stage))
        with pytest.raises(InputError, match="changed files"):
            check_checkpoint_fits(tmp_path, {"llm": found, "store": None}, store=False)


TRANSFORMER = {
    "_component_": "torchtune_speech.models.transformer_projector",
    "in_dim": 12,
    "out_dim": 32,
    "num_heads": 2,
}
MAPPER = {"_component_": "torchtune_speech.models.speechmapper_projector", "ctc_vocab_size": 39}


def check_projectors(folder, then, now):
    """Whether a checkpoint that recorded one projector may be loaded into another."""
    (folder / "step_1").mkdir(exist_ok=True)
    found = {"llm": {"name": "llm"}, "store": None}
    stage = {"format": 1, "fingerprints": found, "config": {"projector": then}}
    (folder / "step_1" / "stage.json").write_text(json.dumps(stage))
    now = None if now is None else OmegaConf.create(now)
    check_checkpoint_fits(folder, found, store=True, projector=now)


@pytest.mark.parametrize(
    ("then", "now"),
    [
        (TRANSFORMER, TRANSFORMER | {"dropout": 0.1, "output_scale": 0.1}),
        (TRANSFORMER, TRANSFORMER | {"activation": "gelu", "positions": "rotary"}),
        (TRANSFORMER | {"of_another_version": 1}, TRANSFORMER),
        # A CTC head is left behind, or begins.
        (TRANSFORMER | {"ctc_vocab_size": 39, "ctc_layer": 2}, TRANSFORMER),
        (TRANSFORMER, TRANSFORMER | {"ctc_vocab_size": 39, "ctc_layer": 2}),
        (MAPPER, MAPPER | {"block_dims": [1024, 2048]}),  # as the default, a tuple
        (MAPPER | {"strides": [2, 2]}, MAPPER),  # one for all blocks, as the default
        (MAPPER | {"num_heads": 2}, MAPPER | {"num_heads": [2, 2]}),
        (None, TRANSFORMER),
        (TRANSFORMER, None),
    ],
)
def test_settings_that_make_the_same_network_are_accepted(tmp_path, then, now):
    check_projectors(tmp_path, then, now)


@pytest.mark.parametrize(
    ("then", "changes", "message"),
    [
        (TRANSFORMER, {"num_heads": 4}, "num_heads=2, this run has 4; set projector.num_heads=2"),
        (TRANSFORMER, {"activation": "silu"}, "activation=gelu, this run has silu"),
        (TRANSFORMER, {"positions": "learned"}, "positions=rotary, this run has learned"),
        (TRANSFORMER | {"ctc_vocab_size": 39}, {"ctc_layer": 0}, "ctc_layer=null, this run has 0"),
        (MAPPER, {"ctc_block": 2}, "ctc_block=1, this run has 2"),
        (MAPPER, {"ctc_vocab_size": 40}, "ctc_vocab_size=39, this run has 40"),
        (MAPPER, {"strides": [1, 4]}, r"strides=2, this run has \[1, 4\]"),
        (MAPPER, {"strides": [4, 4]}, r"strides=2, this run has \[4, 4\]"),
        (MAPPER | {"block_dims": [64, 64]}, {"block_dims": 32}, r"block_dims=\[64, 64\], this run"),
        (MAPPER, {"input_norm": False}, "input_norm=true, this run has false"),
        (TRANSFORMER, {"_component_": MAPPER["_component_"]}, "_component_=torchtune_speech.mo"),
    ],
)
def test_settings_that_make_another_network_are_refused(tmp_path, then, changes, message):
    with pytest.raises(InputError, match=f"trained with projector.{message}"):
        check_projectors(tmp_path, then, then | changes)


@pytest.mark.parametrize(
    ("projector", "cured", "cure"),
    [
        (TRANSFORMER | {"out_stack": 2}, {"out_stack": 1, "stack": 2}, "out_stack=1"),
        (
            MAPPER | {"block_dims": [16, 16]},
            {"strides": [2, 1]},
            "strides to 1 in the blocks behind",
        ),
    ],
)
def test_each_projector_is_told_how_ctc_gets_as_many_vectors(projector, cured, cure):
    projector = projector | {"in_dim": 12, "out_dim": 32, "ctc_vocab_size": 9}
    wrong, right = (config.instantiate(OmegaConf.create(p)) for p in (projector, projector | cured))
    data = SimpleNamespace(ctc=TokenLabels(SimpleNamespace(vocab_size=8)))
    with pytest.raises(InputError, match=f"set projector.{cure}.*, or embedding_weight=0"):
        check_embedding_target(wrong, data)
    assert check_embedding_target(right, data) is None


def test_a_pointer_in_the_place_of_weights_is_named(tmp_path):
    llm = make_llm(tmp_path / "llm")
    file = next(llm.glob("*.safetensors"))
    file.write_text("version https://git-lfs.github.com/spec/v1\nsize 16060556376\n")
    with pytest.raises(InputError, match=r"model.*safetensors: .*download the model again"):
        llm_fingerprint(llm)


def make_stage(folder, metrics):
    make_checkpoint(folder, 1)
    stage = {"format": 1, "metrics": metrics}
    (folder / "step_1" / "stage.json").write_text(json.dumps(stage))


@pytest.mark.parametrize(("part", "stage"), [("asr", "A"), ("nearest_token", "1")])
def test_fusing_an_incoherent_projector_is_warned_of(tmp_path, monkeypatch, part, stage):
    said = []
    monkeypatch.setattr(_run._log, "warning", lambda text, *values: said.append(text % values))
    make_stage(tmp_path / "good", {part: {"wer": 0.2}})
    warn_if_incoherent(tmp_path / "good")
    make_stage(tmp_path / "unheard", {})
    warn_if_incoherent(tmp_path / "unheard")
    warn_if_incoherent(None)
    assert said == []
    make_stage(tmp_path / "bad", {part: {"wer": 0.9}})
    warn_if_incoherent(tmp_path / "bad")
    assert len(said) == 1
    assert f"WER of 0.90 on its dev set; train stage {stage} longer first" in said[0]
