"""A study as its YAML file tells it, and the runs and steps that come of it."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from torchtune_speech.config import config_path, study_path
from torchtune_speech.errors import InputError, did_you_mean
from torchtune_speech.study._step import StudyStep, output_key, setting_words

_REQUIRED = ("title", "varied", "seeds", "families", "variants", "pipeline", "scores")
_STEP_KEYS = ("recipe", "config", "set", "drop")
_FOLDER_NAME = re.compile(r"\w[\w.+-]*")


@dataclass(frozen=True, slots=True)
class Study:
    """What a study asks.

    Attributes:
        name: of its file.
        title: one line.
        varied: what the variants differ in; heads their column and names the x axis.
        seeds: each variant is run with each.
        family: of the configs, such as nano.
        family_values: what the file says of this family, `${family.KEY}` in the steps. There,
            `without` lists variants that this family leaves out.
        variants: name to its values, `${variant.KEY}`; `pipeline` among them changes steps.
        pipeline: name of a step to recipe, config, set and drop.
        scores: label to where the score is: STEP.KEY.KEY of that step's report.
        plot: labels of the scores in the plot.
        baseline: the variant that the others are compared with, seed by seed; None for none.
    """

    name: str
    title: str
    varied: str
    seeds: tuple[int, ...]
    family: str
    family_values: Mapping[str, Any]
    variants: Mapping[str, Mapping[str, Any]]
    pipeline: Mapping[str, Any]
    scores: Mapping[str, str]
    plot: tuple[str, ...]
    baseline: str | None


@dataclass(frozen=True, slots=True)
class StudyRun:
    """One variant with one seed.

    Attributes:
        variant: its name.
        seed: its seed.
        steps: name to step, in order; a step may belong to several runs.
    """

    variant: str
    seed: int
    steps: Mapping[str, StudyStep]


def load_study(name: str, *, family: str | None = None, overrides: Sequence[str] = ()) -> Study:
    """Read and check a study.

    Args:
        name: a packaged study, or the path of a YAML file, which wins.
        family: one of its families; the first by default.
        overrides: `key=value`, dotted keys of the file.

    Returns:
        The study.

    Raises:
        InputError: naming the key that is missing, unknown or wrong.
    """
    path = Path(name) if Path(name).is_file() else study_path(name)
    tree = _read_tree(path, overrides)
    _check(tree, path)
    family, values, variants = _choose_family(tree, family, path)
    return Study(
        name=path.stem,
        title=tree["title"],
        varied=tree["varied"],
        seeds=tuple(tree["seeds"]),
        family=family,
        family_values=values,
        variants=variants,
        pipeline=tree["pipeline"],
        scores=tree["scores"],
        plot=tuple(tree.get("plot") or tree["scores"]),
        baseline=_baseline(tree, variants),
    )


def _read_tree(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The file with overrides; interpolations stay as they are, to be resolved for each run."""
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(tree, dict):
        raise InputError(f"{path}: not a study; its top level has to be lines of `key: value`")
    variants = tree.get("variants")
    if isinstance(variants, dict):  # 100 and true are names here
        tree["variants"] = {str(key): value or {} for key, value in variants.items()}
    for word in overrides:
        if "=" not in word:
            raise InputError(f"--set {word}: write it as KEY=VALUE")
    merged = OmegaConf.merge(OmegaConf.create(tree), OmegaConf.from_dotlist(list(overrides)))
    return OmegaConf.to_container(merged, resolve=False)


def _choose_family(
    tree: Mapping[str, Any], family: str | None, path: Path
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Name and values of the family, and the variants that it has."""
    families, variants = tree["families"], tree["variants"]
    family = family or next(iter(families))
    if family not in families:
        hint = did_you_mean(family, families) or f"; it has {', '.join(families)}"
        raise InputError(f"{path}: no family {family!r}{hint}")
    values = dict(families[family] or {})
    without = [str(name) for name in values.pop("without", None) or ()]
    for name in without:
        if name not in variants:
            hint = did_you_mean(name, variants)
            raise InputError(f"{path}: families.{family}.without: no variant {name!r}{hint}")
    return family, values, {k: v for k, v in variants.items() if k not in without}


def _baseline(tree: Mapping[str, Any], variants: Mapping[str, Any]) -> str | None:
    """The variant to compare with, if this family has it."""
    name = tree.get("baseline")
    return str(name) if name is not None and str(name) in variants else None


def _check(tree: Mapping[str, Any], path: Path) -> None:
    """Refuse a file that is not a study, or has a key that nothing reads."""
    for key in _REQUIRED:
        if not tree.get(key):
            raise InputError(f"{path}: no {key!r}; a study has {', '.join(_REQUIRED)}")
    _refuse_unknown(tree, (*_REQUIRED, "plot", "baseline"), str(path))
    for key in ("families", "variants", "pipeline", "scores"):
        if not isinstance(tree[key], dict):
            raise InputError(f"{path}: {key} has to be lines of `NAME: ...` below it")
    for key in ("families", "variants"):
        for name, node in tree[key].items():
            if not isinstance(node or {}, dict):
                raise InputError(f"{path}: {key}.{name}: {node!r}; write {{KEY: VALUE}}, or {{}}")
    seeds = tree["seeds"]
    if not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds):
        raise InputError(f"{path}: seeds: {seeds!r}; write whole numbers, as [0, 1, 2]")
    if len(set(seeds)) < len(seeds):
        raise InputError(f"{path}: seeds: {seeds!r}; a seed twice is one run twice, take one away")
    for key in ("title", "varied"):
        if not isinstance(tree[key], str):
            raise InputError(f"{path}: {key}: {tree[key]!r} is no text; put it in quotes")
    for name in (*tree["pipeline"], *tree["scores"]):
        if not isinstance(name, str):
            raise InputError(f"{path}: {name!r} is no text, but a name; put it in quotes")
    for name in tree["pipeline"]:
        if "." in name:
            raise InputError(f"{path}: pipeline.{name}: scores could not name it; take out the dot")
    for name in (*tree["variants"], *tree["pipeline"]):
        if not _FOLDER_NAME.fullmatch(name):
            raise InputError(
                f"{path}: {name!r} names a folder; use letters, digits, _ . + and - alone"
            )
    baseline = tree.get("baseline")
    if baseline is not None and str(baseline) not in tree["variants"]:
        hint = did_you_mean(str(baseline), tree["variants"])
        raise InputError(f"{path}: baseline: {baseline!r} is no variant{hint}")
    _check_steps(tree, path)
    _check_scores(tree, path)


def _check_steps(tree: Mapping[str, Any], path: Path) -> None:
    """The pipeline, and what variants change in it."""
    pipeline = tree["pipeline"]
    for name, step in pipeline.items():
        if not (step or {}).get("recipe"):
            raise InputError(f"{path}: pipeline.{name}: no recipe; add recipe: NAME")
        _refuse_unknown(step, _STEP_KEYS, f"{path}: pipeline.{name}")
    for variant, values in tree["variants"].items():
        for name, step in (values.get("pipeline") or {}).items():
            where = f"{path}: variants.{variant}.pipeline.{name}"
            if name not in pipeline:
                raise InputError(f"{where}: no such step{did_you_mean(name, pipeline)}")
            _refuse_unknown(step or {}, _STEP_KEYS, where)


def _check_scores(tree: Mapping[str, Any], path: Path) -> None:
    """Scores come from steps, the plot from scores."""
    pipeline, scores = tree["pipeline"], tree["scores"]
    for label, score in scores.items():
        step = str(score).partition(".")[0]
        if step not in pipeline:
            hint = did_you_mean(step, pipeline)
            raise InputError(f"{path}: scores: {label}: {score} begins with no step{hint}")
    for label in tree.get("plot") or ():
        if label not in scores:
            hint = did_you_mean(label, scores)
            raise InputError(f"{path}: plot: {label!r} is no score{hint}")


def _refuse_unknown(node: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in node:
        if key not in known:
            hint = did_you_mean(str(key), known) or f"; it may have {', '.join(known)}"
            raise InputError(f"{where}: unknown key {key!r}{hint}")


def expand(study: Study, out: Path) -> list[StudyRun]:
    """The runs of a study: every variant with every seed.

    Steps that do the same thing with the same settings are one step, in the folder of the first
    run that has it. So what is common to all variants, or does not depend on the seed, is done
    once.

    Args:
        study: the study.
        out: folder of the study; steps are in `out/VARIANT/seed_S/STEP`.

    Returns:
        The runs, all variants with the first seed first.

    Raises:
        InputError: for a setting that refers to what is not there.
    """
    steps: dict[str, StudyStep] = {}  # by digest
    runs = []
    for seed in study.seeds:
        for variant in study.variants:
            found = _run_steps(study, variant, seed, out / variant / f"seed_{seed}", steps)
            runs.append(StudyRun(variant, seed, found))
    return runs


def _run_steps(
    study: Study, variant: str, seed: int, folder: Path, known: dict[str, StudyStep]
) -> dict[str, StudyStep]:
    values = dict(study.variants[variant])
    changes = values.pop("pipeline", None) or {}
    cfg = OmegaConf.create(
        {
            "family": {**study.family_values, "name": study.family},
            "variant": {**values, "name": variant},
            "seed": seed,
            "step": {},
            "pipeline": OmegaConf.merge(study.pipeline, changes),
        }
    )
    steps: dict[str, StudyStep] = {}
    for name in study.pipeline:
        if cfg.pipeline[name] is None:
            continue
        try:
            step = _resolve_step(cfg, name, folder / name, steps)
        except OmegaConfBaseException as error:
            what = str(error).partition("\n")[0]
            raise InputError(
                f"study {study.name}: variant {variant}, step {name}: {what}; "
                f"mend pipeline.{name} or the variant"
            ) from None
        steps[name] = known.setdefault(step.digest, step)
    return steps


def _resolve_step(
    cfg: DictConfig, name: str, folder: Path, before: Mapping[str, StudyStep]
) -> StudyStep:
    """A step with all its settings.

    Its digest tells what it does: the recipe, the config's content, the settings, and in place of
    the paths of earlier steps the digests of those.
    """
    cfg.step = {key: step.digest for key, step in before.items()}
    node = OmegaConf.to_container(cfg.pipeline[name], resolve=True)
    recipe = node["recipe"]
    config = node.get("config") or f"{cfg.family.name}/{recipe}"
    file = Path(config) if Path(config).is_file() else config_path(config)
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    what = [recipe, content, _words(node)]
    digest = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()
    cfg.step = {key: str(step.product) for key, step in before.items()}
    words = _words(OmegaConf.to_container(cfg.pipeline[name], resolve=True))
    if taken := [w for w in words if w.partition("=")[0] in (output_key(recipe), "resume")]:
        raise InputError(f"pipeline.{name}: {taken[0]} is set by the study; take it away")
    return StudyStep(name, recipe, config, tuple(words), folder, digest)


def _words(node: Mapping[str, Any]) -> list[str]:
    return [f"~{key}" for key in node.get("drop") or ()] + setting_words(node.get("set") or {})
