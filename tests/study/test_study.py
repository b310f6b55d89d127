"""From a YAML file to commands."""

import random
import re
import shlex
import string
import sys
from pathlib import Path

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from torchtune_speech import config
from torchtune_speech.cli import main
from torchtune_speech.config import study_names, study_path
from torchtune_speech.errors import InputError
from torchtune_speech.study import dry_run, expand, load_study, unique_steps
from torchtune_speech.study._step import setting_words


def commands(study, **options):
    lines = dry_run(study, Path("out"), **options).splitlines()
    return [shlex.split(line)[2:] for line in lines if line.startswith("tune run")]


def test_every_variant_is_run_with_every_seed_and_common_steps_once(write_study, tree):
    runs = expand(load_study(write_study(tree)), Path("out"))
    named = [(run.variant, run.seed) for run in runs]
    assert named == [(v, s) for s in (0, 1, 2) for v in ("10", "20")]
    assert {tuple(run.steps) for run in runs} == {("A", "C", "predict", "score")}
    assert {run.steps["A"].folder for run in runs} == {Path("out/10/seed_0/A")}
    assert [run.steps["C"].folder for run in runs] == [
        Path(f"out/{variant}/seed_{seed}/C") for variant, seed in named
    ]
    assert len(unique_steps(runs)) == 1 + 3 * 6


def test_commands_carry_settings_and_paths_of_earlier_steps(write_study, tree):
    tree["pipeline"]["A"]["drop"] = ["projector.num_heads"]
    tree["pipeline"]["A"]["set"] |= {"dataset": {"tasks": ["asr"], "features": None}, "ok": True}
    first, second, third, fourth = commands(load_study(write_study(tree)))[:4]
    assert first == [
        *("projector", "--config", "fake.yaml", "output_dir=out/10/seed_0/A", "resume=true"),
        *("~projector.num_heads", "max_steps=5", "seed=0", 'dataset.tasks=["asr"]'),
        *("dataset.features=null", "ok=true"),
    ]
    assert second[-3:] == ["projector_checkpoint=out/10/seed_0/A", "max_steps=10", "seed=0"]
    assert third[-2:] == [
        "output=out/10/seed_0/predict/predictions.jsonl",
        "checkpoint=out/10/seed_0/C",
    ]
    assert fourth[-2:] == [
        "output=out/10/seed_0/score/report.json",
        "predictions=out/10/seed_0/predict/predictions.jsonl",
    ]


def test_several_processes_for_all_but_scores(write_study, tree):
    study = load_study(write_study(tree))
    for command in commands(study, processes=8):
        assert (command[:2] == ["--nproc_per_node", "8"]) == ("speech_eval" not in command)
    # How many there are changes no result, so it is no other step.
    assert unique_steps(expand(study, Path("out")))[0].command(8)[2] == "projector"


def test_a_variant_changes_and_leaves_out_steps(write_study, tree):
    tree["variants"]["joint"] = {
        "pipeline": {
            "A": None,
            "C": {"set": {"projector_checkpoint": None, "max_steps": "${family.a}"}},
        }
    }
    study = load_study(write_study(tree), overrides=["seeds=[3]"])
    (run,) = [run for run in expand(study, Path("out")) if run.variant == "joint"]
    assert list(run.steps) == ["C", "predict", "score"]
    assert run.steps["C"].words == ("projector_checkpoint=null", "max_steps=5", "seed=3")


def test_family_and_overrides(write_study, tree):
    large = load_study(write_study(tree), family="large", overrides=["pipeline.A.set.seed=7"])
    assert list(large.variants) == ["10"]
    assert commands(large)[0][-2:] == ["max_steps=50", "seed=7"]
    changed = load_study(write_study(tree), overrides=["variants.20.steps=25"])
    assert {w for c in commands(changed) for w in c if w.startswith("max_steps")} == {
        "max_steps=5",
        "max_steps=10",
        "max_steps=25",
    }


def test_a_step_is_another_if_anything_before_it_is(write_study, tree):
    def digests():
        runs = expand(load_study(write_study(tree)), Path("out"))
        return [step.digest for step in runs[0].steps.values()]

    before = digests()
    assert digests() == before
    tree["title"] = "Another"
    assert digests() == before
    Path("fake.yaml").write_text("max_steps: 1  # a comment\n")
    assert digests() == before
    tree["pipeline"]["A"]["set"]["seed"] = 1
    after_a = digests()
    assert not set(after_a) & set(before)
    tree["pipeline"]["predict"]["set"]["limit"] = 3
    after_predict = digests()
    assert [a == b for a, b in zip(after_a, after_predict, strict=True)] == [1, 1, 0, 0]
    Path("fake.yaml").write_text("max_steps: 2\n")
    assert not set(digests()) & set(after_predict)


def test_words_are_read_back_as_they_were_meant():
    rng = random.Random(0)
    texts = [
        "1",
        "true",
        "null",
        "1e3",
        "a b",
        "a: b",
        "x # y",
        "",
        "~",
        "[",
        "0123",
        "${a}",
        "é中",
    ]
    texts += ["".join(rng.choices(string.printable, k=5)) for _ in range(300)]
    for value in [*texts, 1, 0.3, 1e-05, 1e20, None, True, [1, "2", None], {}, ["a", {"b": 1}]]:
        (word,) = setting_words({"a": {"b.c": value}})
        key, _, text = word.partition("=")
        assert key == "a.b.c"
        found = OmegaConf.to_container(OmegaConf.from_dotlist([f"x={text}"]), resolve=False)
        assert found["x"] == value and type(found["x"]) is type(value), word


FAMILIES = {n: yaml.safe_load(study_path(n).read_text())["families"] for n in study_names()}
BAD = {
    "title": (lambda t: t.pop("title"), "no 'title'"),
    "key": (lambda t: t.update(seed=1), "unknown key 'seed'; did you mean 'seeds'?"),
    "seeds": (lambda t: t.update(seeds=["a"]), "write whole numbers"),
    "seed twice": (lambda t: t.update(seeds=[1, 1]), "a seed twice"),
    "step key": (lambda t: t["pipeline"]["A"].update(sets={}), "pipeline.A: unknown key 'sets'"),
    "no recipe": (lambda t: t["pipeline"]["A"].pop("recipe"), "pipeline.A: no recipe"),
    "empty step": (lambda t: t["pipeline"].update(A=None), "pipeline.A: no recipe"),
    "folder": (lambda t: t["variants"].update({"a/b": {}}), "'a/b' names a folder"),
    "patch": (
        lambda t: t["variants"].update(x={"pipeline": {"D": None}}),
        "variants.x.pipeline.D: no such step",
    ),
    "score": (lambda t: t["scores"].update(WER="scoer.asr.wer"), "did you mean 'score'?"),
    "plot": (lambda t: t.update(plot=["BLUE"]), "'BLUE' is no score; did you mean 'BLEU'?"),
    "variant value": (
        lambda t: t["pipeline"]["C"]["set"].update(max_steps="${variant.step}"),
        "variant 10, step C: ",
    ),
    "later step": (
        lambda t: t["pipeline"]["A"]["set"].update(x="${step.C}"),
        "variant 10, step A: ",
    ),
    "output": (lambda t: t["pipeline"]["C"]["set"].update(output_dir="x"), "set by the study"),
    "resume": (lambda t: t["pipeline"]["C"]["set"].update(resume=True), "set by the study"),
    "config": (lambda t: t["pipeline"]["A"].update(config="nano/projecter"), "nano/projector"),
    "without": (lambda t: t["families"]["tiny"].update(without=["11"]), "no variant '11'"),
    "title text": (lambda t: t.update(title=2026), "title: 2026 is no text"),
    "step text": (lambda t: t["pipeline"].update({1: {"recipe": "projector"}}), "1 is no text"),
    "step dot": (lambda t: t["pipeline"].update({"A.b": {"recipe": "projector"}}), "the dot"),
    "label text": (lambda t: t["scores"].update({1: "score.asr.wer"}), "1 is no text"),
    "baseline": (lambda t: t.update(baseline="21"), "baseline: '21' is no variant"),
    "variant": (lambda t: t["variants"].update(a=3), "variants.a: 3; write {KEY: VALUE}"),
    "variants": (lambda t: t.update(variants=["a"]), "variants has to be lines of `NAME: ...`"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_wrong_is_named(write_study, tree, what):
    spoil, message = BAD[what]
    spoil(tree)
    with pytest.raises(InputError) as error:
        expand(load_study(write_study(tree)), Path("out"))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_no_baseline_is_no_variant_called_null(write_study, tree):
    tree["variants"][None] = {"steps": 1}
    assert load_study(write_study(tree)).baseline is None


def test_wrong_names_and_overrides(write_study, tree):
    with pytest.raises(InputError, match="did you mean 'fusion_steps'"):
        load_study("fusion_step")
    with pytest.raises(InputError, match="no family 'tyny'; did you mean 'tiny'"):
        load_study(write_study(tree), family="tyny")
    with pytest.raises(InputError, match="--set seeds: write it as KEY=VALUE"):
        load_study(write_study(tree), overrides=["seeds"])


PACKAGED = [(name, family) for name in study_names() for family in FAMILIES[name]]


@pytest.fixture
def parsed(monkeypatch):
    """A function that gives the config a recipe would get from a command line."""

    def parse(words):
        found = []

        @config.parse
        def recipe_main(cfg):
            found.append(cfg)

        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as end:
            recipe_main()
        assert not end.value.code
        return found[0]

    return parse


@pytest.mark.parametrize(("name", "family"), PACKAGED)
def test_packaged_studies_give_recipes_and_components_what_they_know(
    name, family, parsed, recipe_module
):
    study = load_study(name, family=family, overrides=["seeds=[1]"])
    for step in unique_steps(expand(study, Path("out"))):
        cfg = parsed(step.command())
        config.check_keys(cfg, recipe_module(step.recipe).KEYS)
        for key, node in cfg.items_ex(resolve=False):
            if not isinstance(node, DictConfig) or "_component_" not in node:
                continue
            fields = {k: None for k in node if k != "_component_"}
            component = config.locate(node._component_)
            assert not config.signature_problem(component, (), fields, may_miss=True), key
        if step.is_training:
            assert cfg.seed == 1 or step.recipe == "extract_features"
            assert (cfg.max_steps is None) != (cfg.epochs is None) and cfg.max_steps != 0
            assert all(isinstance(rate.lr, float) for rate in cfg.learning_rate.values())
            if "ctc_only_steps" in cfg:
                assert cfg.ctc_only_steps <= cfg.max_steps


def test_packaged_studies_have_three_seeds_and_are_listed(capsys):
    assert {"fusion_steps", "paired", "lora_rank", "projector_kind"} <= set(study_names())
    assert main(["study"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == study_names()
    assert all(len(load_study(name).seeds) >= 3 for name in study_names())
    assert all(load_study(name).baseline for name in study_names())


def test_the_example_of_the_docs_is_a_study(tmp_path, parsed):
    text = (Path(__file__).parents[2] / "docs" / "studies.md").read_text()
    file = tmp_path / "rate.yaml"
    file.write_text(re.search(r"```yaml\n(.*?)```", text, re.S)[1])
    assert list(load_study(str(file), family="llama3_1_8b").variants) == ["0.0003", "0.001"]
    runs = expand(load_study(str(file)), Path("out"))
    assert [run.variant for run in runs] == ["0.0003", "0.001", "0.01"] * 3
    cfg = parsed(runs[2].steps["C"].command())
    assert cfg.learning_rate.lora == {"lr": 0.01, "schedule": "cosine", "warmup_steps": 60}


def test_the_command_line_prints_commands(write_study, tree, capsys):
    file = write_study(tree)
    assert main(["study", file, "--dry-run", "--set", "seeds=[4]", "--family", "large"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and all(line.startswith("tune run ") for line in lines[:4])
    assert "output_dir=runs/studies/large/how_long/10/seed_4/A" in lines[0]
    assert lines[4].startswith("# How long?: 1 runs, 4 steps, 0 of them done")
    assert not Path("runs").exists()
    for wrong in (["study", "nothing"], ["study", file, "--processes", "0"]):
        with pytest.raises(SystemExit) as end:
            main(wrong)
        assert end.value.code == 1
        assert capsys.readouterr().err.count("\n") == 1
