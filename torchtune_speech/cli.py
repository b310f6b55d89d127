"""The command `torchtune-speech`: what is installed, copies of it, and small tools around a run."""

import argparse
import importlib.util
import runpy
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from torchtune_speech import __version__
from torchtune_speech.config import (
    config_header,
    config_names,
    config_path,
    one_line_errors,
    recipe_names,
    recipe_path,
    study_names,
)
from torchtune_speech.errors import InputError, did_you_mean
from torchtune_speech.files import atomic_write, read_jsonl, write_json

# What the subcommands call from other parts of the package is imported inside them, so that
# `torchtune-speech ls` answers before torch would have been loaded.

_EXAMPLES = """\
examples:
  torchtune-speech ls                                    recipes and their configs
  torchtune-speech help projector                        what a recipe does, and its config keys
  torchtune-speech cp nano/projector my.yaml             a config of your own ...
  tune run projector --config my.yaml rows_per_step=8    ... and a run with it
  torchtune-speech cp projector my_projector.py          a recipe of your own ...
  tune run my_projector --config my.yaml                 ... and a run of it
  torchtune-speech manifest recordings/ train.jsonl      a manifest from audio and transcripts
  torchtune-speech segment talks.jsonl cut.jsonl         long audio in windows of 30 s
  torchtune-speech verify features/                      is a feature store whole?
  torchtune-speech compare old.jsonl new.jsonl           is the new system better, or is it chance?
  torchtune-speech export --llm LLM --adapter runs/nano/C --out merged
                                                         an LLM with its LoRA merged in
  torchtune-speech keep --checkpoint runs/nano-2026/v2/stage_1 --features F --output kept.parquet
                                                         which speech vectors are no pads?
  torchtune-speech agreement scored.jsonl --label human  which metric agrees with people?
  torchtune-speech study fusion_steps                    a question, several variants and seeds

TORCHTUNE_SPEECH_TRACEBACK=1 shows where an error came from.
"""

_AGREEMENT = """\
Says of each metric in a file how far it agrees with labels, with 95 % bootstrap intervals.

Have people judge a hundred answers, put the verdict beside the metrics, a line an answer:
  {"kind": "where", "question": "q1", "f1": 0.67, "match": 0, "human": 1}
  {"kind": "when", "question": "q2", "f1": 0.80, "match": 0, "human": 0}
  {"kind": "when", "question": "q3", "scores": {"f1": 1.0, "match": 1}, "human": true}
and ask
  torchtune-speech agreement scored.jsonl --label human --metrics f1,match --group question

  Kendall tau-b  1: the metric ranks answers as the label does; 0: it knows nothing of it; below 0:
                 high scores go with wrong answers. The one to read where labels are grades. With
                 labels of right and wrong, fine scores reach 0.7 at most, coarse ones 1.
  Pearson r      the same for a straight line instead of ranks
  ROC area       how often a right answer scores higher than a wrong one; 0.5: by chance. The one
                 to read where labels are right and wrong.
  accuracy       answers sorted right by a threshold that was chosen on another half of the rows;
                 compare it with always taking the commoner label, which is in the title
  right if       the best threshold on all rows, to use on new answers
  left out       rows without a value (null) of metric or label

Where the intervals of two metrics overlap widely, judge more answers before you choose."""


_COMPARE = """\
Scores two files of predictions for the same samples and says, for each task, language and score,
whether the difference between them could be chance.

Rows are joined by task and id. Samples are then drawn at random, with replacement, a thousand times
(the same draws for both systems), and both are scored on each draw. From the thousand differences
come
  95 % interval  where the difference lies; a difference is not established while 0 is inside
  p              how often a difference as clear as this is seen between equal systems;
                 below 0.05 it is marked *, and the better system named

A difference that is not significant may still be real: there may be too few samples to show it.
Of twenty comparisons of equal systems one is marked by chance: choose beforehand what counts.
Intervals say nothing of other data, and nothing of another run with another seed.
"""

_COMPARE_EXAMPLES = """\
examples:
  torchtune-speech compare runs/A/predictions.jsonl runs/C/predictions.jsonl
  torchtune-speech compare old.jsonl new.jsonl --by duration --by domain
  torchtune-speech compare old.jsonl new.jsonl --normalizer mms --json comparison.json
"""

_STUDY = """\
Answers a question by training: every variant of a study with every seed, one after the other.

Without a name, lists the packaged studies. A study is a YAML file (docs/studies.md): what varies,
the recipes to run, the scores to look at. Steps that several runs have in common are run once. A
study that was stopped goes on where it was when it is started again; what is done is skipped, and
steps whose settings or configs have changed are run again, with all that follows from them."""

_STUDY_EXAMPLES = """\
examples:
  torchtune-speech study                                          which are there?
  torchtune-speech study fusion_steps --dry-run                   the commands it would run
  torchtune-speech study fusion_steps                             run it in the nano world
  torchtune-speech study fusion_steps --family llama3_1_8b --processes 8
  torchtune-speech study fusion_steps --set seeds=[0] --set pipeline.C.set.rows_per_step=4
  torchtune-speech study my_study.yaml --out runs/my_study

results, in OUT (runs/studies/FAMILY/NAME):
  table.md    means over the seeds, with confidence intervals
  plot.svg    the points of all seeds
  study.json  every run's scores, seconds, steps and tokens
  VARIANT/seed_S/STEP, STEP.log, STEP.json    what each step wrote, printed, and how it was run
"""

_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: Its words; those of the process when None.

    Returns:
        The exit code: 0 when all is well, 1 when a check found problems.
    """
    with one_line_errors():
        options = _parser().parse_args(argv)
        return options.run(options) or 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="torchtune-speech",
        description="Recipes that join speech encoders to large language models, for `tune run`.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    _add_packaged(commands)
    _add_manifest(commands)
    _add_segment(commands)
    _add_verify(commands)
    _add_compare(commands)
    _add_agreement(commands)
    _add_export(commands)
    _add_keep(commands)
    _add_study(commands)
    return parser


def _add_packaged(commands: _Commands) -> None:
    command = commands.add_parser("ls", help="list the recipes and their configs")
    command.add_argument("recipe", nargs="?", help="only the configs of this recipe")
    command.set_defaults(run=_ls)

    command = commands.add_parser("help", help="what a recipe does, its configs and their keys")
    command.add_argument("recipe", help="such as projector")
    command.set_defaults(run=_help)

    command = commands.add_parser("cp", help="copy a recipe or config to make it your own")
    command.add_argument("name", help="a recipe (projector) or a config (nano/projector)")
    command.add_argument("dest", type=Path, help="the new file, or a folder to keep the name in")
    command.add_argument("--force", action="store_true", help="replace an existing file")
    command.set_defaults(run=_cp)

    command = commands.add_parser("path", help="print where a recipe or config is installed")
    command.add_argument("name", help="a recipe (projector) or a config (nano/projector)")
    command.set_defaults(run=_path)


def _add_manifest(commands: _Commands) -> None:
    command = commands.add_parser(
        "manifest",
        help="make a manifest from a folder of audio and transcripts",
        description="""\
Writes a manifest of the audio files in a folder that have a transcript. It may be in
  name.txt beside name.wav; a translation in name.de.txt;
  transcripts.tsv or .csv with a header: file, text, speaker, and a column a language (de, ...);
  *.trans.txt as in LibriSpeech.""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("folder", type=Path, help="the folder; folders inside are searched too")
    command.add_argument("out", type=Path, help="the manifest to write (.jsonl or .parquet)")
    command.add_argument("--source-lang", default="en", help="language spoken (%(default)s)")
    command.add_argument(
        "--target-langs",
        default="de,it,zh",
        help="languages to look for translations in (%(default)s)",
    )
    command.add_argument("--domain", help="name of the corpus; the folder's name if not given")
    command.add_argument(
        "--dev-fraction",
        type=float,
        default=0.0,
        help="share of the speakers to mark `split: dev`; 0: no split",
    )
    command.set_defaults(run=_manifest)


def _add_segment(commands: _Commands) -> None:
    command = commands.add_parser(
        "segment",
        help="cut the long audio of a manifest into windows",
        description="""\
Writes a manifest in which no audio is longer than a window. Transcription and translation become a
row a window, whose answers `tune run speech_generate` joins again; questions stay one row, which
hears its windows one after the other.""",
        epilog="""\
example: a test set of long talks
  torchtune-speech segment talks.jsonl talks.cut.jsonl
  tune run extract_features --config llama3_1_8b/extract_features manifest=talks.cut.jsonl ...
  tune run speech_generate --config llama3_1_8b/speech_generate \\
    dataset.manifest=talks.cut.jsonl dataset.require_target=false output=talks.predictions.jsonl
  tune run speech_eval --config llama3_1_8b/speech_eval \\
    predictions=talks.predictions.jsonl manifest=talks.jsonl""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("manifest", type=Path, help="rows with long audio")
    command.add_argument("out", type=Path, help="the manifest to write (.jsonl or .parquet)")
    command.add_argument(
        "--window", type=float, default=30.0, help="longest window in seconds (%(default)g)"
    )
    command.add_argument(
        "--at",
        choices=["silence", "fixed"],
        default="silence",
        help="cut where it is quiet, or at fixed places (%(default)s)",
    )
    command.add_argument(
        "--overlap",
        type=float,
        default=0.0,
        help="seconds that fixed windows have in common; words said twice are joined (%(default)g)",
    )
    command.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="take these rows only, such as track=long of an official file; may be repeated",
    )
    command.set_defaults(run=_segment)


def _add_verify(commands: _Commands) -> None:
    command = commands.add_parser("verify", help="look for damage in a feature store")
    command.add_argument("store", type=Path, help="the folder of the feature store")
    command.set_defaults(run=_verify)


def _add_export(commands: _Commands) -> None:
    command = commands.add_parser(
        "export",
        help="merge a LoRA adapter into its LLM",
        description="Writes the LLM with the LoRA adapter merged in as a Hugging Face folder.",
    )
    command.add_argument(
        "--llm", type=Path, required=True, help="Hugging Face folder of the frozen LLM"
    )
    command.add_argument(
        "--adapter",
        type=Path,
        required=True,
        help="output_dir of a run, one of its step_N folders, or any PEFT folder",
    )
    command.add_argument("--out", type=Path, required=True, help="the folder to write")
    command.set_defaults(run=_export)


def _add_keep(commands: _Commands) -> None:
    command = commands.add_parser(
        "keep",
        help="which speech vectors are no pads, so that the LLM reads those alone",
        description="""\
Runs the projector of a `speechmapper` run over a feature store and writes down which speech vectors
of each utterance are no pads: those whose nearest token is another than the pad. With
`dataset.kept=OUT` the later recipes give the LLM these alone. Prints what is saved.""",
        epilog="""\
example: stage C on what stage 1 keeps
  torchtune-speech keep --checkpoint runs/my/stage_1 --features F --output kept.parquet
  tune run multimodal_fuse --config my/fuse projector_checkpoint=runs/my/stage_1 \\
      dataset.kept=kept.parquet eval_dataset.kept=kept.parquet""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        help="output_dir of a speechmapper run, or one of its step_N folders",
    )
    command.add_argument("--llm", type=Path, help="folder of the LLM; the run's if not given")
    command.add_argument("--features", type=Path, required=True, help="the feature store")
    command.add_argument(
        "--output", type=Path, required=True, help="the file to write, such as kept.parquet"
    )
    command.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    command.set_defaults(run=_keep)


def _add_agreement(commands: _Commands) -> None:
    command = commands.add_parser(
        "agreement",
        help="how far metrics agree with labels, such as people's judgements",
        description=_AGREEMENT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("file", type=Path, metavar="FILE.jsonl", help="an answer a line")
    command.add_argument("--label", required=True, metavar="COLUMN", help="what is right")
    command.add_argument(
        "--metrics",
        metavar="COLUMN,...",
        help='metrics to look at (default: those in "scores", else all columns of numbers)',
    )
    command.add_argument("--by", metavar="COLUMN", help="a table for each value of this, too")
    command.add_argument(
        "--group",
        metavar="COLUMN",
        help="rows that share this (answers to one question) are drawn together; without it, "
        "intervals take all rows for independent",
    )
    command.add_argument(
        "--right-from",
        type=float,
        metavar="LABEL",
        help="where labels are grades: those from here on are right, for accuracy and ROC",
    )
    command.add_argument(
        "--resamples", type=int, default=1000, metavar="N", help="of the bootstrap (%(default)s)"
    )
    command.add_argument("--seed", type=int, default=0, help="of all chance (%(default)s)")
    command.add_argument("--json", type=Path, metavar="OUT", help="write the figures there, too")
    command.set_defaults(run=_agreement)


def _add_compare(commands: _Commands) -> None:
    command = commands.add_parser(
        "compare",
        help="compare the predictions of two systems: which differences are no chance?",
        description=_COMPARE,
        epilog=_COMPARE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("a", type=Path, help="predictions of the first system, with `target`")
    command.add_argument("b", type=Path, help="predictions of the second for the same samples")
    command.add_argument(
        "--by",
        action="append",
        default=[],
        metavar="PART",
        help="compare on each part too: domain, duration or answer_type; may be repeated",
    )
    command.add_argument(
        "--normalizer",
        default="whisper",
        help="of the error rates: whisper, basic, mms or none (%(default)s)",
    )
    command.add_argument(
        "--allow-missing",
        action="store_true",
        help="compare the samples that both files have; without it, files must have the same",
    )
    command.add_argument(
        "--no-ter", action="store_true", help="leave TER out, which takes long on Chinese"
    )
    command.add_argument("--json", type=Path, metavar="OUT", help="write all numbers there too")
    command.set_defaults(run=_compare)


def _add_study(commands: _Commands) -> None:
    command = commands.add_parser(
        "study",
        help="ablations: variants of a system with several seeds, a table and a plot",
        description=_STUDY,
        epilog=_STUDY_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("name", nargs="?", help="a packaged study or a YAML file; none: list them")
    command.add_argument("--family", help="its configs, such as llama3_1_8b (the study's first)")
    command.add_argument("--out", type=Path, help="folder of the study")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a key of the study, dotted; may be repeated",
    )
    command.add_argument(
        "--processes", type=int, default=1, metavar="N", help="of each recipe (%(default)s)"
    )
    command.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    command.set_defaults(run=_study)


def _packaged(name: str) -> Path:
    """Returns the file of a recipe or config; recipe names have no folder, config names do."""
    if name.removesuffix(".py") in recipe_names():
        return recipe_path(name)
    if name.removesuffix(".yaml") in config_names():
        return config_path(name)
    near = did_you_mean(name, [*recipe_names(), *config_names()])
    raise InputError(
        f"{name}: no such recipe or config{near or '; `torchtune-speech ls` lists them'}"
    )


def _ls(options: argparse.Namespace) -> None:
    names = recipe_names() if options.recipe is None else [recipe_path(options.recipe).stem]
    table = {name: config_names(name) for name in names}
    width = max((len(config) for configs in table.values() for config in configs), default=0) + 2
    left = max(map(len, ["RECIPE", *table])) + 2
    print(f"{'RECIPE':<{left}}{'CONFIG':<{width}}FOR")
    for recipe, configs in table.items():
        for config, description in (configs or {"-": "give a config of your own"}).items():
            print(f"{recipe:<{left}}{config:<{width}}{description}")
            recipe = ""  # named on its first line only


def _help(options: argparse.Namespace) -> None:
    path = recipe_path(options.recipe)
    sys.argv = [str(path), "--help"]
    runpy.run_path(str(path), run_name="__main__")


def _path(options: argparse.Namespace) -> None:
    print(_packaged(options.name))


def _cp(options: argparse.Namespace) -> None:
    source, dest = _packaged(options.name), options.dest
    if dest.is_dir():
        dest = dest / source.name
    elif dest.suffix != source.suffix:
        dest = dest.with_name(dest.name + source.suffix)
    if dest.suffix == ".py" and not dest.stem.isidentifier():
        raise InputError(f"{dest}: no name of a module; use letters, digits and _ before .py")
    if dest.exists() and not options.force:
        raise InputError(f"{dest}: exists already; name another file or add --force to replace it")
    with atomic_write(dest) as temporary:
        shutil.copyfile(source, temporary)
    print(f"copied {options.name} to {dest}")
    if source.suffix == ".yaml":
        recipe, _ = config_header(source)
        print(f"run it with: tune run {recipe} --config {dest}")
    else:
        _say_how_to_run(dest, config=next(iter(config_names(source.stem)), "CONFIG"))


def _say_how_to_run(recipe: Path, config: str) -> None:
    if importlib.util.find_spec(recipe.stem) is not None:
        print(
            f"warning: `tune run {recipe.stem}` runs the installed module of that name, not this "
            "copy; give it a name of its own",
            file=sys.stderr,
        )
    # torchtune imports a recipe relative to the current folder and takes no other paths.
    go_there = "" if recipe.parent == Path() else f"cd {recipe.parent} && "
    print(f"run it with: {go_there}tune run {recipe.stem} --config {config}")


def _verify(options: argparse.Namespace) -> int:
    from torchtune_speech.features import verify_store

    problems = verify_store(options.store)
    print("\n".join(problems) or f"{options.store}: no problems")
    return 1 if problems else 0


def _manifest(options: argparse.Namespace) -> None:
    from torchtune_speech.data import manifest_from_folder

    # It logs what it wrote and what it left out.
    manifest_from_folder(
        options.folder,
        options.out,
        options.source_lang,
        target_langs=[lang.strip() for lang in options.target_langs.split(",") if lang.strip()],
        domain=options.domain,
        dev_fraction=options.dev_fraction,
    )


def _segment(options: argparse.Namespace) -> None:
    from torchtune_speech.data import segment_manifest

    where: dict[str, list[str]] = {}
    for text in options.where:
        column, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--where {text}: write it as COLUMN=VALUE")
        where.setdefault(column, []).append(value)
    before, after = segment_manifest(
        options.manifest,
        options.out,
        window_s=options.window,
        at=options.at,
        overlap_s=options.overlap,
        # A single value as such: the track of an official file has to be one.
        where={c: v[0] if len(v) == 1 else v for c, v in where.items()} or None,
    )
    print(f"{before} rows as {after} in {options.out}")


def _compare(options: argparse.Namespace) -> None:
    from torchtune_speech.evaluation import compare, format_comparison

    names = str(options.a), str(options.b)
    comparison = compare(
        read_jsonl(options.a),
        read_jsonl(options.b),
        normalizer=options.normalizer,
        by=options.by,
        allow_missing=options.allow_missing,
        ter=not options.no_ter,
        names=names,
    )
    if options.json:
        write_json(options.json, {"a": names[0], "b": names[1]} | comparison)
    print(format_comparison(comparison, names))


def _export(options: argparse.Namespace) -> None:
    from torchtune_speech import training
    from torchtune_speech.models import export_merged

    adapter = options.adapter
    if not (adapter / "adapter_config.json").is_file():
        adapter = training.find_checkpoint(adapter)
    found = {"llm": training.llm_fingerprint(options.llm), "store": None}
    training.check_checkpoint_fits(adapter, found, store=False)
    export_merged(options.llm, adapter, options.out)
    print(f"wrote {options.llm} with the LoRA of {adapter} to {options.out}")


def _keep(options: argparse.Namespace) -> None:
    from torchtune_speech.training import keep_non_pads

    report = keep_non_pads(
        options.checkpoint,
        features=options.features,
        output=options.output,
        llm_dir=options.llm,
        device=options.device,
    )
    share = report.kept / max(report.vectors, 1)
    print(
        f"{options.output}: {report.utterances:,} utterances; the LLM reads {report.kept:,} of "
        f"{report.vectors:,} speech vectors ({share:.1%})"
    )
    if report.only_pads:
        print(f"{report.only_pads:,} utterances are pads alone; one vector of each is kept")


def _agreement(options: argparse.Namespace) -> None:
    from torchtune_speech.evaluation import agreement_table, format_agreement

    if options.resamples < 1:
        raise InputError(f"--resamples: {options.resamples}; it has to be at least 1")
    metrics = options.metrics and [name.strip() for name in options.metrics.split(",")]
    report = agreement_table(
        read_jsonl(options.file),
        options.label,
        metrics=metrics,
        by=options.by,
        group=options.group,
        right_from=options.right_from,
        num_resamples=options.resamples,
        seed=options.seed,
        where=str(options.file),
    )
    print(format_agreement(report))
    if options.json:
        write_json(options.json, report)


def _study(options: argparse.Namespace) -> None:
    from torchtune_speech.study import dry_run, load_study, run_study

    if options.name is None:
        titles = {name: load_study(name).title for name in study_names()}
        width = max(map(len, titles), default=0) + 2
        print("\n".join(f"{name:<{width}}{title}" for name, title in titles.items()))
        return
    if options.processes < 1:
        raise InputError(f"--processes: {options.processes}; it has to be at least 1")
    study = load_study(options.name, family=options.family, overrides=options.set)
    out = options.out or Path("runs") / "studies" / study.family / study.name
    if options.dry_run:
        print(dry_run(study, out, processes=options.processes))
        return
    run_study(study, out, processes=options.processes)
    print((out / "table.md").read_text(encoding="utf-8"))
    print(f"also in {out}: table.md, plot.svg, study.json")
