"""Wrong input: one line that names the file or field and the cure, and nothing left behind."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import save_file
from tiny_world import FRAME_DIM, make_data, make_llm, write_config

from torchtune_speech.features import FeatureWriter, finalize_store

TRAINING = ("projector", "lora_finetune_text", "multimodal_fuse", "speechmapper")
RECIPES = (*TRAINING, "speech_generate")


@pytest.fixture(scope="module")
def world(tmp_path_factory, recipe_module):
    """The tiny world with stage A and stage B, one step each, as ``A`` and ``B``."""
    folder = tmp_path_factory.mktemp("world")
    make_llm(folder / "llm")
    make_data(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        for recipe, name in (("projector", "A"), ("lora_finetune_text", "B")):
            file = write_config(
                folder, recipe, output_dir=str(folder / name), max_steps=1, eval_dataset=None
            )
            patch.setattr(sys, "argv", [recipe, "--config", str(file)])
            with pytest.raises(SystemExit) as exit_:
                recipe_module(recipe).recipe_main()
            assert not exit_.value.code
    stages = {
        "projector_checkpoint": str(folder / "A"),
        "adapter_checkpoint": str(folder / "B"),
    }
    write_config(folder, "multimodal_fuse", **stages)
    write_config(folder, "speech_generate", **stages)
    write_config(folder, "speechmapper")
    return folder


CASES = {}
DRY_RUNS = []  # names of cases that a dry run with data refuses, too


def case(recipe, *parts):
    """Registers a function that prepares a case: world, folder -> words of the command line.

    Args:
        recipe: to be run.
        *parts: what the error line holds.
    """

    def register(prepare):
        CASES[f"{recipe}-{prepare.__name__}"] = (recipe, parts, prepare)
        return prepare

    return register


def simple(recipe, name, words, *parts):
    """A case that needs nothing but words."""
    CASES[f"{recipe}-{name}"] = (recipe, parts, lambda world, tmp: words)


def rows_of(world):
    return [json.loads(line) for line in (world / "data" / "manifest.jsonl").open()]


def manifest(tmp, rows):
    """A word that names a manifest with these rows."""
    file = tmp / "bad.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"dataset.manifest={file}"


def store(tmp, dim=FRAME_DIM, count=8, **fingerprint):
    """A word that names a feature store of noise."""
    fields = {"encoder": "noise", "dim": dim, "frames_per_second": 50.0} | fingerprint
    with FeatureWriter(tmp / "store", fields, dtype=torch.float32) as writer:
        for i in range(count):
            writer.add(f"{i}.wav", torch.randn(30, dim), seconds=1.0)
    finalize_store(tmp / "store")
    return f"dataset.features={tmp / 'store'}"


# ---- the LLM ------------------------------------------------------------------------------------

for _recipe in RECIPES:

    @case(_recipe, "nowhere: no config.json there; give the folder")
    def missing_llm(world, tmp):
        return [f"llm_dir={tmp / 'nowhere'}"]


@case("projector", "bare: no *.safetensors there; download")
def llm_without_weights(world, tmp):
    shutil.copytree(world / "llm", tmp / "bare")
    (tmp / "bare" / "model.safetensors").unlink()
    return [f"llm_dir={tmp / 'bare'}"]


@case("lora_finetune_text", "model.safetensors: cannot be read", "copy or download it again")
def llm_cut_short(world, tmp):
    shutil.copytree(world / "llm", tmp / "cut")
    file = tmp / "cut" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    return [f"llm_dir={tmp / 'cut'}"]


@case("projector", "odd: its weights do not fit its config.json", "download the model again")
def llm_of_two_models(world, tmp):
    shutil.copytree(world / "llm", tmp / "odd")
    file = tmp / "odd" / "config.json"
    changed = json.loads(file.read_text()) | {"hidden_size": 64, "head_dim": 16}
    file.write_text(json.dumps(changed))
    return [f"llm_dir={tmp / 'odd'}", "projector.out_dim=64"]


@case("projector", "tokenizer.json: ")
def llm_without_tokenizer(world, tmp):
    shutil.copytree(world / "llm", tmp / "mute")
    (tmp / "mute" / "tokenizer.json").unlink()
    return [f"llm_dir={tmp / 'mute'}"]


# ---- manifest and feature store -----------------------------------------------------------------


@case("projector", "nowhere.jsonl: manifest not found; check the path")
def missing_manifest(world, tmp):
    return [f"dataset.manifest={tmp / 'nowhere.jsonl'}"]


@case("speech_generate", "nowhere.jsonl: manifest not found; check the path")
def missing_test_set(world, tmp):
    return [f"dataset.manifest={tmp / 'nowhere.jsonl'}"]


@case("projector", "bad.jsonl:2: field 'target' is missing or empty; write the expected answer")
def bad_row(world, tmp):
    good, bad = rows_of(world)[:2]
    return [manifest(tmp, [good, bad | {"target": " "}])]


@case("lora_finetune_text", "bad.jsonl:1: not valid JSON", "write one JSON object a line")
def broken_json(world, tmp):
    (tmp / "bad.jsonl").write_text('{"id": "1",\n')
    return [f"dataset.manifest={tmp / 'bad.jsonl'}"]


simple(
    "projector",
    "filtered_to_nothing",
    ["dataset.tasks=[qa]"],
    "manifest.jsonl: no row left, filter tasks=['qa'] removed all",
    "choose from the values that are there: st (16), asr (8)",
)
simple(
    "lora_finetune_text",
    "no_text_twins",
    ["dataset.tasks=[asr]"],
    "dataset.text_twins: ",
    "no sample has a text twin",
)


@case("projector", "nowhere: no such folder; run extract_features")
def missing_store(world, tmp):
    return [f"dataset.features={tmp / 'nowhere'}"]


@case("multimodal_fuse", "data: not a feature store (store.json is missing)")
def folder_that_is_no_store(world, tmp):
    return [f"dataset.features={world / 'data'}"]


simple(
    "projector",
    "no_store",
    ["dataset.features=null"],
    "has audio, but no feature store was given; set dataset.features",
)


@case("projector", "audio 5.wav is not in the feature store", "run extract_features on this")
def store_without_an_utterance(world, tmp):
    return [store(tmp, count=5)]


@case("projector", "sample 0-asr: 425 tokens, max_seq_len is 32", "dataset.on_too_long=skip")
def too_long(world, tmp):
    row = rows_of(world)[0] | {"target": "a " * 400}
    return [manifest(tmp, [row]), "max_seq_len=32"]


simple("projector", "unknown_policy", ["dataset.on_too_long=cut"], "dataset.on_too_long: 'cut'")

# ---- tasks, templates, mixture ------------------------------------------------------------------


@case("projector", "no prompt for task 'summarise', only for asr", "instructions.summarise")
def unknown_task(world, tmp):
    rows = [row | {"task": "summarise"} for row in rows_of(world) if row["task"] == "asr"]
    return [manifest(tmp, rows), "dataset.tasks=null"]


@case("multimodal_fuse", "sample '0-sqa'", "has {question}", "no 'question'; add it")
def template_without_its_field(world, tmp):
    row = next(row for row in rows_of(world) if row["task"] == "sqa")
    del row["question"]
    return [manifest(tmp, [row]), "mixture=null"]


@case("projector", "own.yaml: instructions.sqa.en[0] lacks {question}; put it where")
def instruction_without_its_field(world, tmp):
    text = {"extends": "mcif_fixed", "instructions": {"sqa": {"en": "Answer."}}}
    (tmp / "own.yaml").write_text(yaml.safe_dump(text))
    return [f"dataset.templates={tmp / 'own.yaml'}"]


simple("projector", "unknown_templates", ["dataset.templates=mcif"], "mcif: no such template file")
simple(
    "multimodal_fuse",
    "unknown_mixture_task",
    ["mixture.task.ast=0.5"],
    "mixture.task: no samples for 'ast', only for ['asr', 'sqa', 'st']; remove it",
)
simple("multimodal_fuse", "odd_mixture", ["mixture=0.5"], "mixture: needs task")
simple(
    "multimodal_fuse",
    "one_language_mixture",
    ["mixture={task: {asr: 1}, language: uniform}"],
    "mixture.language: 'uniform'; give tasks, and of each the weights",
)


# ---- projector ----------------------------------------------------------------------------------

for _recipe in ("projector", "multimodal_fuse", "speech_generate"):

    @case(
        _recipe,
        "projector.in_dim: 12, but the frames of",
        "store are 20 wide; set projector.in_dim=20",
    )
    def in_dim(world, tmp):
        return [store(tmp, dim=20)]


simple(
    "projector",
    "out_dim",
    ["projector.out_dim=48"],
    "projector.out_dim: 48, but the LLM's embeddings are 32 wide; set projector.out_dim",
)
simple(
    "projector",
    "heads",
    ["projector.num_heads=3"],
    "projector.num_heads: 3 does not divide embed_dim 16; ",
)
simple(
    "projector",
    "odd_heads",
    ["projector.num_heads=16"],
    "projector.num_heads: ",
    "positions=learned",
)
simple("projector", "no_stack", ["projector.stack=0"], "projector.stack: 0; give a whole number")
simple("projector", "activation", ["projector.activation=relu"], "projector.activation: 'relu';")
simple(
    "projector",
    "even_kernel",
    [
        "projector._component_=torchtune_speech.models.conformer_projector",
        "projector.kernel_size=4",
    ],
    "projector.kernel_size: 4; give an odd number",
)
simple("projector", "positions", ["projector.positions=sine"], "projector.positions: 'sine'")
simple("projector", "ctc_layer", ["projector.ctc_layer=7"], "projector.ctc_layer: 7")
simple(
    "projector",
    "ctc_vocab_size",
    ["projector.ctc_vocab_size=39"],
    "projector.ctc_vocab_size: 39, but dataset.ctc has",
    "set projector.ctc_vocab_size=",
)
simple(
    "multimodal_fuse",
    "labels_of_another_kind",
    ["dataset.ctc=characters"],
    "but dataset.ctc has 39 labels; set projector.ctc_vocab_size=39, or dataset.ctc=null",
)
simple(
    "projector",
    "no_ctc_head",
    ["projector.ctc_vocab_size=null"],
    "projector.ctc_vocab_size: null, but dataset.ctc has",
)
simple(
    "multimodal_fuse",
    "no_ctc_labels",
    ["dataset.ctc=null", "ctc_weight=0.3"],
    "dataset.ctc: the CTC loss needs labels; set it to characters or tokens, or ctc_weight",
)
simple(
    "projector",
    "no_labels_for_ctc_alone",
    ["dataset.ctc=null", "ctc_weight=0", "ctc_only_steps=2"],
    "dataset.ctc: the CTC loss needs labels",
)
simple(
    "projector",
    "two_tokens_for_silence",
    ["ctc_only_steps=2", "embedding_blank='The king'"],
    "embedding_blank: 'The king' is 2 tokens for this LLM; give text of one, or null",
)


@case("speech_generate", "dataset: 2 samples of task", "give each its own")
def two_of_one_name(world, tmp):
    file = world / "data" / "manifest.jsonl"
    return [f"dataset.manifest=[{file},{file}]"]


simple(
    "projector",
    "text_for_a_listener",
    ["dataset.tasks=[asr,mt]"],
    "dataset: sample 0-mt has no speech, from which a projector could learn; take tasks",
)
DRY_RUNS.append("projector-text_for_a_listener")


@case("lora_finetune_text", "dataset: sample ", "has speech", "set dataset.text_twins=true")
def speech_for_a_reader(world, tmp):
    return ["dataset.text_twins=false", store(tmp)]


simple(
    "lora_finetune_text",
    "speech_without_a_store",
    ["dataset.text_twins=false", "dataset.features=null"],
    "no feature store was given; set dataset.features, or dataset.text_twins=true",
)
simple("projector", "unknown_labels", ["dataset.ctc=phones"], "dataset.ctc: 'phones' is unknown")

# ---- checkpoints --------------------------------------------------------------------------------

for _recipe in ("multimodal_fuse", "speech_generate"):

    @case(_recipe, "A against this run's feature store: fingerprint does not fit", "layer is 8")
    def store_of_another_encoder(world, tmp):
        return [store(tmp, layer=8)]

    @case(_recipe, "trained with the LLM 'llm', this run uses 'other'", "set llm_dir to")
    def checkpoint_of_another_llm(world, tmp):
        make_llm(tmp / "other", tie=True)
        return [f"llm_dir={tmp / 'other'}"]

    @case(_recipe, "empty: no checkpoint there; give the output_dir of a finished stage")
    def no_checkpoint(world, tmp):
        (tmp / "empty").mkdir()
        return [f"projector_checkpoint={tmp / 'empty'}"]

    @case(_recipe, "holds no projector; give a checkpoint of projector or multimodal_fuse")
    def checkpoint_without_projector(world, tmp):
        return [f"projector_checkpoint={world / 'B'}"]

    @case(_recipe, "no adapter_model.safetensors; give a checkpoint folder with a LoRA adapter")
    def checkpoint_without_lora(world, tmp):
        return [f"adapter_checkpoint={world / 'A'}"]

    for _name, _words, _line in (
        ("out_dim", ["projector.out_dim=48"], "=32, this run has 48; set projector.out_dim=32"),
        ("embed_dim", ["projector.embed_dim=8"], "=16, this run has 8; set projector.embed_dim=16"),
        ("num_layers", ["projector.num_layers=2"], "=1, this run has 2; set projector.num_layers"),
        ("num_heads", ["projector.num_heads=4"], "=2, this run has 4; set projector.num_heads=2"),
        ("activation", ["projector.activation=silu"], "=gelu, this run has silu; set projector."),
        ("ctc_layer", ["projector.ctc_layer=0"], "=null, this run has 0; set projector.ctc_layer"),
        (
            "_component_",
            ["projector._component_=torchtune_speech.models.conformer_projector"],
            "=torchtune_speech.models.transformer_projector, this run has torchtune_speech.models.",
        ),
    ):
        _trained = f"A: trained with projector.{_name}{_line}"
        simple(_recipe, f"projector_of_another_{_name.strip('_')}", _words, _trained)

    simple(
        _recipe,
        "lora_of_another_rank",
        ["model.lora_rank=4"],
        "B: LoRA of rank 8, but model.lora_rank is 4; set model.lora_rank=8",
    )
    simple(
        _recipe,
        "lora_of_another_scale",
        ["model.lora_alpha=32"],
        "B: LoRA of alpha 16, but model.lora_alpha is 32; set model.lora_alpha=16",
    )


for _recipe in ("projector", "speechmapper"):

    @case(_recipe, "A: trained with projector.num_heads=2, this run has 4; set projector.num_heads")
    def projector_of_another_num_heads(world, tmp):
        return [f"projector_checkpoint={world / 'A'}", "projector.num_heads=4"]


@case("speech_generate", "checkpoint: null, so the projector would be untrained; give a run")
def forgotten_checkpoint(world, tmp):
    return ["projector_checkpoint=null"]


@case("projector", "B: holds LoRA, but the model has none; use a lora_ builder")
def lora_for_a_model_without(world, tmp):
    return [f"adapter_checkpoint={world / 'B'}"]


@case("projector", "A: holds checkpoints up to step_1; set resume=true to go on, or name another")
def resume_refused(world, tmp):
    return [f"output_dir={world / 'A'}"]


@case("projector", "A/step_1: resume=true, but rows_per_step was 3 and is 2; go on with what")
def resume_with_other_steps(world, tmp):
    return [f"output_dir={world / 'A'}", "resume=true", "rows_per_step=2"]


@case("projector", "A/step_1: trained with projector.num_heads=2, this run has 4; set projector.")
def resume_with_another_network(world, tmp):
    return [f"output_dir={world / 'A'}", "resume=true", "projector.num_heads=4"]


@case("projector", "A/step_1: resume=true, but the data of the run was another; go on with what")
def resume_with_other_data(world, tmp):
    return [f"output_dir={world / 'A'}", "resume=true", "dataset.tasks=[asr]", "mixture=null"]


# ---- settings -----------------------------------------------------------------------------------

for _recipe in TRAINING:
    for _name, _words, *_parts in (
        ("both_lengths", ["epochs=2"], "max_steps, epochs: give one of the two"),
        ("no_length", ["max_steps=null"], "max_steps, epochs: give one of the two"),
        ("no_rows", ["rows_per_step=0"], "rows_per_step: 0; give a whole number of 1 or more"),
        ("part_of_a_step", ["max_steps=1.5"], "max_steps: 1.5; give a whole number"),
        ("save_never", ["save_every_n_steps=0"], "save_every_n_steps: 0; give a whole number"),
        ("nonfinite", ["on_nonfinite=ignore"], "on_nonfinite: 'ignore'; use fail or skip"),
        ("clip", ["clip_grad_norm=0"], "clip_grad_norm: 0; give a number above 0, or null"),
        ("one_rate", ["learning_rate=1e-3"], "learning_rate: 0.001; give lr, schedule and"),
        ("unknown_key", ["batchsize=4"], "config: unknown key 'batchsize'"),
        ("misspelt", ["dataset.manifst=x"], "has no argument 'manifst'; did you mean 'manifest'"),
        ("no_component", ["optimizer._component_=torch.optim.Adamm"], "did you mean 'Adam"),
        ("optimizer", ["optimizer.weigth_decay=1"], "did you mean 'weight_decay'"),
        ("device", ["device=cuda"], "device: cuda: not on this machine; set device=cpu"),
        ("unknown_device", ["device=abacus"], "device: abacus: not on this machine"),
        ("dtype", ["dtype=fp8"], "dtype: 'fp8' is unknown; use fp32 or bf16"),
    ):
        if _name != "device" or not torch.cuda.is_available():
            simple(_recipe, _name, _words, *_parts)

for _name, _words, *_parts in (
    ("group", ["learning_rate.lora.lr=1"], "learning_rate: needs one entry each for ['projector']"),
    ("field", ["learning_rate.projector.warmup=1"], "learning_rate.projector: takes lr, schedule"),
    ("schedule", ["learning_rate.projector.schedule=step"], "learning_rate: schedule 'step' is"),
    ("rate", ["learning_rate.projector.lr=fast"], "learning_rate.projector.lr: 'fast'"),
    ("bare_rate", ["learning_rate.projector=1e-3"], "learning_rate.projector: 0.001; give it lr"),
    ("rate_before_data", ["learning_rate.projector.lr=x", "dataset.manifest=gone"], "lr: 'x'"),
    ("seed", ["seed=-1"], "seed: -1; give a whole number of 0 or more"),
    ("workers", ["num_workers=many"], "num_workers: 'many'; give a whole number of 0 or more"),
    ("one_speed", ["dataset.speeds=0.9"], "dataset.speeds: 0.9; give a list of factors"),
    ("no_speed", ["dataset.speeds=[0]"], "dataset.speeds: [0]; give a list of factors"),
    ("no_ctc_weight", ["ctc_weight=null"], "ctc_weight: None; give a number, 0 for none"),
    ("no_ctc_only", ["ctc_only_steps=null"], "ctc_only_steps: None; give a whole number"),
    ("no_average", ["dataset.frame_average=0"], "frame_average: 0; give a whole number"),
    ("mask", ["spec_augment={time_mask: 2}"], "spec_augment: ", "time_mask"),
    ("stack", ["spec_augment={stack: 5}"], "spec_augment: stack (5) must divide the width"),
):
    simple("projector", _name, _words, *_parts)

# ---- towards the LLM's embeddings: recipe speechmapper, and sigma of projector ------------------

_LOSSES = "squared_error pad_squared_error absolute cosine contrast ctc".split()

_COMPRESS = ["~projector.embed_dim", "projector.block_dims=[16,16]", "projector.ffn_dims=16"]
_COMPRESS += ["projector._component_=torchtune_speech.models.speechmapper_projector"]
_COMPRESS += ["projector.strides=1", "projector.ctc_compress=true"]

for _name, _words, *_parts in (
    ("rows_of_the_table", ["vocab_size=7"], "vocab_size: 7, but the embedding table of"),
    ("pad_beyond_the_table", ["pad_token=99999"], "pad_token: 99999 is token 99999, but the table"),
    ("pad_of_text", ["pad_token=k"], "pad_token: 'k' is a token of text, 'k'; give the id or the"),
    ("pad_of_two_words", ["pad_token=two words"], "pad_token: 'two words' is 4 tokens"),
    ("normalizer", ["normalizer=bsic"], "normalizer: unknown name 'bsic'; did you mean 'basic'"),
    ("part_of_the_loss", ["loss.cosin=1"], "loss.cosin: unknown part; did you mean 'cosine'"),
    ("no_loss", [f"loss.{name}=0" for name in _LOSSES], "loss: all weights are 0"),
    ("no_labels", ["dataset.ctc=null", "loss.ctc=0.3"], "or loss.ctc to 0"),
    ("labels", ["dataset.ctc=tokens", "projector.ctc_vocab_size=39"], "projector.ctc_vocab_size: "),
    ("frame_width", ["projector.in_dim=13"], "projector.in_dim: 13, but the frames of"),
    ("width", ["projector.out_dim=16"], "projector.out_dim: 16, but the LLM's embeddings are 32"),
    ("no_frames", ["max_frames=0"], "max_frames: 0; give a whole number of 1 or more"),
    (
        "too_few_vectors",
        ["projector.stack=9", "dataset.on_too_long=fail"],
        "tokens for fewer speech vectors (1)",
        "or set dataset.on_too_long=skip",
    ),
    ("temperature", ["contrast_temperature=0"], "contrast_temperature: 0; give a number above 0"),
    ("store", ["dataset.features=nowhere"], "nowhere: no such folder; run extract_features"),
    ("rows_without_audio", ["dataset.tasks=[mt]"], "0-mt: has 0 audios", "dataset.tasks=[asr]"),
    ("unanswerable", ["dataset.unanswerable={share: 0.1}"], "has no argument 'unanswerable'"),
    (
        "compress_by_characters",
        [*_COMPRESS, "dataset.ctc=characters", "projector.ctc_vocab_size=39"],
        "dataset.ctc: projector.ctc_compress counts the LLM's tokens",
        "set dataset.ctc=tokens, or projector.ctc_compress=false",
    ),
    (
        "compress_unheard",
        [*_COMPRESS, "loss.ctc=0"],
        "loss.ctc: 0, but projector.ctc_compress needs a head that hears",
    ),
    (
        "compress_without_a_head",
        [*_COMPRESS, "projector.ctc_vocab_size=null"],
        "needs a CTC head and a",
    ),
):
    simple("speechmapper", _name, _words, *_parts)
    if _name != "store":  # without one a dry run goes on
        DRY_RUNS.append(f"speechmapper-{_name}")

for _name in ("projector", "multimodal_fuse"):
    simple(
        _name,
        "compress_unheard",
        [*_COMPRESS, "ctc_weight=0"],
        "ctc_weight: 0, but projector.ctc_compress needs a head that hears",
    )
DRY_RUNS.append("projector-compress_unheard")

_SIGMA = ["sigma=0.5", "pad_token=<|reserved_special_token_1|>", "normalizer=basic"]
_SIGMA += ["dataset.on_too_long=skip"]

simple(
    "speech_generate",
    "nearest_tokens_of_stage_a",
    ["nearest_tokens=true"],
    "tells of no stage 1 of SpeechMapper",
)
simple(
    "speech_generate",
    "nearest_tokens_of_text",
    ["nearest_tokens=true", "dataset.text_twins=true"],
    "nearest_tokens: true, but there is no speech to round; set nearest_tokens=false",
)

for _name, _words, *_parts in (
    ("sigma", ["sigma=1.5"], "sigma: 1.5; give a number from 0 to 1"),
    ("sigma_without_pad", ["pad_token=null"], "pad_token: null, but sigma is 0.5; give that of"),
    ("sigma_pad_beyond_the_table", ["pad_token=99999"], "pad_token: 99999 is token 99999, but the"),
    ("sigma_without_normalizer", ["normalizer=null"], "normalizer: null, but sigma is 0.5; give"),
    (
        "pad_without_normalizer",
        ["sigma=0", "normalizer=null"],
        "normalizer: null, but pad_token is given; give that of stage 1, or sigma=0 and pad_token",
    ),
    ("pad_beyond_the_table", ["sigma=0", "pad_token=99999"], "pad_token: 99999 is token 99999"),
    (
        "sigma_too_few_vectors",
        ["dataset.on_too_long=fail"],
        "tokens for fewer speech vectors",
        "or set dataset.on_too_long=skip",
    ),
):
    simple("projector", _name, [*_SIGMA, *_words], *_parts)
    DRY_RUNS.append(f"projector-{_name}")

# ---- questions ----------------------------------------------------------------------------------


@case("multimodal_fuse", "sample '0-sqa': target 'doctor' is none of its choices", "the letter")
def target_that_is_no_choice(world, tmp):
    row = next(row for row in rows_of(world) if row["task"] == "sqa")
    choices = {"choices": ["the queen", "the nurse"]}
    return [manifest(tmp, [row | choices]), "mixture=null", "dataset.templates=nle_2026"]


for _name, _setting, *_parts in (
    ("unanswerable", "true", "dataset.unanswerable: True; write settings as in {share: 0.1}"),
    ("unanswerable_misspelt", "{shar: 1}", "has no argument 'shar'; did you mean 'share'"),
    ("unanswerable_share", "{share: 2}", "unanswerable.share: 2; give a number above 0 to 1"),
    (
        "unanswerable_one_question_for_all",
        "{share: 1}",
        "none could be made of 8 questions; give more",
    ),
    ("no_generic_questions", "{share: 1, generic: 1}", "no generic_questions.en; add them"),
):
    simple("multimodal_fuse", _name, [f"dataset.unanswerable={_setting}"], *_parts)

# ---- one audio file -----------------------------------------------------------------------------


def filter_bank_projector(tmp, audio):
    """Words for answering an audio file with a projector of the filter bank."""
    instruction = "instruction=Transcribe the English content."
    return ["dataset=null", f"audio={audio}", instruction, "projector.in_dim=160"]


def wav(tmp, samples=16000):
    soundfile.write(tmp / "a.wav", np.zeros(samples), 16000)
    return tmp / "a.wav"


@case("speech_generate", "dataset, audio: give one of the two, and set the other to null")
def audio_and_dataset(world, tmp):
    return [f"audio={wav(tmp)}"]


@case("speech_generate", "instruction: missing; say what to do, e.g. instruction=")
def missing_instruction(world, tmp):
    return ["dataset=null", f"audio={wav(tmp)}", "projector.in_dim=160"]


@case("speech_generate", "nowhere.wav: no such audio file; correct the path")
def missing_audio(world, tmp):
    return filter_bank_projector(tmp, tmp / "nowhere.wav")


@case("speech_generate", "a.wav: empty file (0 bytes)")
def empty_audio(world, tmp):
    (tmp / "a.wav").write_bytes(b"")
    return filter_bank_projector(tmp, tmp / "a.wav")


@case("speech_generate", "a.wav: no samples in it")
def audio_without_samples(world, tmp):
    return filter_bank_projector(tmp, wav(tmp, samples=0))


@case("speech_generate", "a.wav: not readable as audio")
def no_audio(world, tmp):
    (tmp / "a.wav").write_text("not a sound")
    return filter_bank_projector(tmp, tmp / "a.wav")


@case("speech_generate", "projector.in_dim: 12, but the frames of encoder are 160 wide; set")
def encoder_of_another_width(world, tmp):
    return [w for w in filter_bank_projector(tmp, wav(tmp)) if "in_dim" not in w]


@case("speech_generate", "A against this run's feature store: fingerprint does not fit: encoder")
def encoder_of_another_kind(world, tmp):
    return filter_bank_projector(tmp, wav(tmp))


simple(
    "speech_generate",
    "instruction_for_data",
    ["instruction=Listen."],
    "instruction: goes with audio=..., which is null; set it to null",
)


@case("speech_generate", "limit: goes with dataset=..., which is null; set it to null")
def limit_for_audio(world, tmp):
    return [*filter_bank_projector(tmp, wav(tmp)), "limit=1"]


@case("lora_finetune_text", "adapter_config.json: not valid JSON", "copy or download it again")
def damaged_adapter(world, tmp):
    (tmp / "adapter").mkdir()
    (tmp / "adapter" / "adapter_config.json").write_text('{"r": 8,')
    save_file({}, tmp / "adapter" / "adapter_model.safetensors")
    return [f"adapter_checkpoint={tmp / 'adapter'}"]


@case("speech_generate", "projector: null, but the data has audio; name its builder")
def speech_without_projector(world, tmp):
    return ["projector=null"]


def test_the_unchanged_configs_are_right(world, run_recipe, tmp_path):
    """Otherwise the cases below might fail for another reason."""
    out = tmp_path / "out"
    for recipe, words in {
        "multimodal_fuse": [f"output_dir={out}", "max_steps=1", "eval_dataset=null"],
        "speech_generate": [f"output={out / 'p.jsonl'}", "limit=2"],
    }.items():
        code, _, err = run_recipe(recipe, "--config", world / f"{recipe}.yaml", *words)
        assert code == 0, err
    assert {p.name for p in out.iterdir()} == {"metrics.jsonl", "step_1", "p.jsonl"}


TABLE = Path(__file__).parents[2] / "docs" / "wrong_input.md"
TABLE_HEAD = """# Wrong input, and what is said about it

What `tests/recipes/test_wrong_input.py` tries, and the one line that it gets (exit code 1, nothing
written). Written by
`make test PYTEST_ARGS="--write-tables tests/recipes/test_wrong_input.py"`.

| recipe | wrong | line |
|---|---|---|
"""


@pytest.fixture(scope="module")
def lines(request):
    """Name of a case to the line it got; written to the docs if asked to."""
    found = {}
    yield found
    if request.config.getoption("--write-tables"):
        rows = (
            f"| {CASES[name][0]} | {name.partition('-')[2].replace('_', ' ')} | `{line}` |\n"
            for name, line in sorted(found.items())
        )
        TABLE.write_text(TABLE_HEAD + "".join(rows), encoding="utf-8")


def test_the_table_in_the_docs_has_all_cases():
    rows = [line.split(" | ") for line in TABLE.read_text(encoding="utf-8").splitlines()]
    listed = {
        f"{row[0].removeprefix('| ')}-{row[1].replace(' ', '_')}" for row in rows if len(row) > 2
    }
    assert set(CASES) <= listed  # where there is a GPU, asking for one is not tried
    assert {name.partition("-")[2] for name in listed - set(CASES)} <= {"wrong", "device"}


@pytest.mark.parametrize("name", CASES)
def test_wrong_input_is_one_line_and_leaves_nothing(name, world, run_recipe, tmp_path, lines):
    recipe, parts, prepare = CASES[name]
    out = tmp_path / "out"
    where = f"output={out / 'p.jsonl'}" if recipe == "speech_generate" else f"output_dir={out}"
    words = prepare(world, tmp_path)
    before = sorted(world.rglob("*"))
    code, _, err = run_recipe(recipe, "--config", world / f"{recipe}.yaml", where, *words)
    assert code == 1
    (line,) = (line for line in err.splitlines() if line.startswith("error:"))
    for part in parts:
        assert part in line
    for folder in (world, tmp_path):
        line = line.replace(str(folder), "runs")
    lines[name] = line.removeprefix("error: ").replace("|", "\\|").replace("`", "'")
    assert "Traceback" not in err
    assert not out.exists()
    assert sorted(world.rglob("*")) == before


@pytest.mark.parametrize("name", DRY_RUNS)
def test_a_dry_run_refuses_what_the_run_refuses(name, world, run_recipe, tmp_path):
    recipe, parts, prepare = CASES[name]
    words = [f"output_dir={tmp_path / 'out'}", "dry_run=true", *prepare(world, tmp_path)]
    code, out, err = run_recipe(recipe, "--config", world / f"{recipe}.yaml", *words)
    assert code == 1, out
    assert all(part in err for part in parts)


def test_two_processes_say_it_once(world, tune_run, tmp_path):
    file = world / "projector.yaml"
    words = [f"output_dir={tmp_path / 'out'}", f"dataset.manifest={tmp_path / 'nowhere.jsonl'}"]
    done = tune_run("--nproc_per_node", 2, "projector", "--config", file, *words, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 1
    # torchrun's own summary has a traceback, of torchrun.
    assert done.stderr.index("error: ") < done.stderr.index("Traceback")
    assert list(Path(tmp_path).iterdir()) == []
