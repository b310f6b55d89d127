"""Every shipped config builds on the meta device, and the stages of a family fit together."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torchtune.models.llama3 import llama3_tokenizer

from torchtune_speech import config, training
from torchtune_speech.config import config_header, config_path, locate, signature_problem
from torchtune_speech.data import (
    Llama3ChatFormat,
    PromptTemplates,
    Sample,
    ctc_labels,
    unanswerable_samples,
)
from torchtune_speech.nano._llm import nano_llama_config
from torchtune_speech.nano._tokenizer import write_tokenizer

STAGES = {
    "projector": ("projector",),
    "lora_finetune_text": ("lora",),
    "multimodal_fuse": ("projector", "lora"),
    "speech_generate": (),
}
CONFIGS = [n for n in config.config_names() if config_header(config_path(n))[0] in STAGES]
MAPPERS = [n for n in config.config_names() if config_header(config_path(n))[0] == "speechmapper"]
FAMILIES = sorted({name.split("/")[0] for name in CONFIGS})


def names_of(family):
    """Stage -> name of its config, for the stages that a family has."""
    names = {stage: f"{family}/{stage}" for stage in STAGES}
    return {stage: name for stage, name in names.items() if name in CONFIGS}


def stages_of(family):
    """Stage -> config."""
    return {stage: OmegaConf.load(config_path(name)) for stage, name in names_of(family).items()}


def extracted_by(family):
    """Config of the features that a family reads: its own, or that of the system of 2025."""
    own = f"{family}/extract_features"
    return own if own in config.config_names() else own.replace("-2026", "")


@pytest.fixture(scope="module")
def nano_llm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llm")
    nano_llama_config(write_tokenizer(folder)).save_pretrained(folder)
    return folder


@pytest.fixture
def build(nano_llm, tmp_path):
    """A function that builds a config's model on the meta device."""

    def build(name):
        cfg = OmegaConf.load(config_path(name))
        if "path" in cfg.model:  # the LLM's shape comes from its folder
            cfg.llm_dir = str(nano_llm)
            if not name.startswith("nano"):
                nano_llama_config(256, hidden_size=cfg.projector.out_dim).save_pretrained(tmp_path)
                cfg.llm_dir = str(tmp_path)
        with torch.device("meta"):
            projector = config.instantiate(cfg.get("projector"))
        return training.meta_speech_llm(cfg.model, projector, torch.bfloat16)

    return build


@pytest.mark.parametrize("name", CONFIGS + MAPPERS)
def test_config_is_complete(name, recipe_module):
    recipe, _ = config_header(config_path(name))
    assert set(OmegaConf.load(config_path(name))) == set(recipe_module(recipe).KEYS)


@pytest.mark.parametrize("name", CONFIGS)
def test_config_builds_on_the_meta_device(name, build, recipe_module, nano_llm):
    recipe, _ = config_header(config_path(name))
    cfg = OmegaConf.load(config_path(name))
    model = build(name)
    assert all(p.is_meta for p in model.parameters())
    for node in filter(None, (cfg.dataset, cfg.get("eval_dataset"))):
        PromptTemplates.from_yaml(node.templates)
    if not STAGES[recipe]:
        return
    assert recipe_module(recipe).TRAINED == STAGES[recipe]
    groups = training.trainable_groups(model, *STAGES[recipe])
    training.check_learning_rates(cfg.learning_rate, groups)
    optimizer = training.build_optimizer(cfg.optimizer, groups)
    assert [g["name"] for g in optimizer.param_groups] == list(STAGES[recipe])
    assert cfg.rows_per_step % cfg.gradient_accumulation_steps == 0
    assert (cfg.max_steps is None) != (cfg.epochs is None)
    if cfg.get("spec_augment"):
        from torchtune_speech.modules import spec_augment

        spec_augment(torch.ones(9, cfg.projector.in_dim), seed=0, **cfg.spec_augment)


@pytest.mark.parametrize("name", [n for n in CONFIGS + MAPPERS if n.startswith("nano")])
def test_the_ctc_head_has_the_labels_of_the_data(name, nano_llm):
    cfg = OmegaConf.load(config_path(name))
    kind = cfg.dataset.get("ctc")
    if kind is None:
        assert cfg.get("ctc_weight", 0) == 0
        return
    files = (str(nano_llm / file) for file in ("tokenizer.model", "tokenizer.json"))
    labels = ctc_labels(kind, Llama3ChatFormat(llama3_tokenizer(*files)))
    assert cfg.projector.ctc_vocab_size == labels.size


@pytest.mark.parametrize("name", MAPPERS)
def test_stage_1_writes_in_the_table_of_its_family(name, recipe_module):
    cfg = OmegaConf.load(config_path(name))
    with torch.device("meta"):
        projector = config.instantiate(cfg.projector)
    stage_a = stages_of(name.split("/")[0])["projector"]
    assert (projector.in_dim, projector.out_dim) == (
        stage_a.projector.in_dim,
        stage_a.projector.out_dim,
    )
    assert cfg.tokenizer == stage_a.tokenizer and cfg.llm_dir == stage_a.llm_dir
    loss = training.check_embedding_loss(
        cfg.loss, temperature=cfg.contrast_temperature, pad_weight=cfg.pad_weight
    )
    assert (loss.ctc > 0) == (cfg.dataset.ctc is not None) == (projector.ctc_proj is not None)
    assert recipe_module("speechmapper").TRAINED == ("projector",)
    training.check_learning_rates(cfg.learning_rate, {"projector": {}})
    assert cfg.rows_per_step % cfg.gradient_accumulation_steps == 0


@pytest.mark.parametrize(
    "name", ["nano-2026/projector", "qwen3_4b/projector", "llama3_1_8b-2026/projector"]
)
def test_stage_2_goes_on_with_stage_1(name):
    cfg = OmegaConf.load(config_path(name))
    mapper = OmegaConf.load(config_path(f"{name.split('/')[0]}/speechmapper"))
    assert cfg.projector_checkpoint == mapper.output_dir
    assert (Path(mapper.output_dir).name, Path(cfg.output_dir).name) == ("stage_1", "stage_2")
    ours, theirs = (OmegaConf.to_container(c.projector) for c in (cfg, mapper))
    if "ctc_compress" not in theirs:  # which needs the head in every stage
        theirs = {k: v for k, v in theirs.items() if not k.startswith("ctc_")}
    assert ours == theirs
    for key in ("llm_dir", "tokenizer", "pad_token", "normalizer"):
        assert cfg[key] == mapper[key], key
    assert cfg.sigma == 0.9 and list(cfg.dataset.tasks) == ["asr"]
    assert cfg.dataset.features == mapper.dataset.features
    assert cfg.dataset.manifest == mapper.dataset.manifest
    assert cfg.learning_rate.projector.schedule == "constant"


def test_the_study_of_sigma_takes_stage_1_where_its_config_writes_it():
    for family, options in OmegaConf.load(config.study_path("sigma")).families.items():
        mapper = OmegaConf.load(config_path(f"{family}/speechmapper"))
        assert options.stage_1 == mapper.output_dir


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stages_of_a_family_fit_together(family, build):
    stages = stages_of(family)
    shapes = {"projector": {}, "lora": {}}
    for stage, config_name in names_of(family).items():
        for name, p in build(config_name).state_dict().items():
            part = "projector" if name.startswith("projector.") else "lora"
            if part == "projector" or ".lora_" in name:
                shapes[part].setdefault(stage, {})[name] = tuple(p.shape)
    for of_part in shapes.values():
        assert all(of_stage == next(iter(of_part.values())) for of_stage in of_part.values())
    scales = {
        (c.model.lora_rank, c.model.lora_alpha) for c in stages.values() if "lora_rank" in c.model
    }
    assert len(scales) <= 1
    assert len({str(c.llm_dir) for c in stages.values()}) == 1
    assert len({str(c.tokenizer) for c in stages.values()}) == 1
    if "multimodal_fuse" in stages:
        fuse = stages["multimodal_fuse"]
        before = stages["projector"]
        if family in ("qwen3_4b", "nano-2026"):  # stage A is stage 1 of SpeechMapper there
            before = OmegaConf.load(config_path(f"{family}/speechmapper"))
        assert fuse.projector_checkpoint == before.output_dir
        text = config_path(f"{family.removesuffix('-2026')}/lora_finetune_text")
        assert fuse.adapter_checkpoint == OmegaConf.load(text).output_dir


@pytest.mark.parametrize("family", [f for f in FAMILIES if "speech_generate" in stages_of(f)])
def test_audio_is_encoded_as_for_the_feature_store(family):
    cfg = stages_of(family)["speech_generate"]
    extract = OmegaConf.load(config_path(extracted_by(family)))
    own = {} if "filter_bank" in cfg.encoder._component_ else {"device": "meta"}
    ours, theirs = (config.instantiate(c.encoder, **own) for c in (cfg, extract))
    assert ours.fingerprint() == theirs.fingerprint()
    assert ours.dim == cfg.projector.in_dim
    assert cfg.frame_average == extract.frame_average
    assert cfg.dataset.features == extract.output_dir


def test_the_8b_configs_follow_the_paper():
    """https://arxiv.org/abs/2506.01808"""
    stages = stages_of("llama3_1_8b")
    fuse = stages["multimodal_fuse"]
    assert (fuse.projector.in_dim, fuse.projector.out_dim, fuse.projector.num_layers) == (
        1024,
        4096,
        4,
    )
    assert (fuse.model.lora_rank, fuse.model.lora_alpha) == (8, 16)
    assert (fuse.learning_rate.projector.lr, fuse.learning_rate.lora.lr) == (1e-5, 3e-4)
    assert fuse.max_steps == 1000 and fuse.paired is True
    assert list(stages["projector"].dataset.tasks) == ["asr", "st"]
    assert stages["lora_finetune_text"].dataset.text_twins is True
    assert stages["speech_generate"].encoder.layer == 24
    assert stages["speech_generate"].frame_average == 3


def test_the_4b_configs_follow_the_paper():
    """arXiv 2607.01960"""
    stages = stages_of("qwen3_4b")
    fuse, text = stages["multimodal_fuse"], stages["lora_finetune_text"]
    assert fuse.mixture.task == {"asr": 0.3, "st": 0.4, "sqa": 0.3}
    assert fuse.mixture.language.st == {"de": 0.4, "it": 0.4, "zh": 0.2}
    assert fuse.mixture.language.sqa == "uniform" and fuse.paired is True
    assert (fuse.learning_rate.projector.lr, fuse.learning_rate.lora.lr) == (5e-5, 1e-5)
    assert fuse.max_steps == 3000
    assert (text.model.lora_rank, text.model.lora_alpha, text.model.lora_dropout) == (8, 16, 0)
    assert (text.learning_rate.lora.lr, text.learning_rate.lora.warmup_steps) == (3e-4, 100)
    assert (text.optimizer.weight_decay, text.max_steps) == (0.1, 30_000)
    answer = stages["speech_generate"]
    assert (answer.frame_average, answer.encoder.layer) == (2, 24)
    assert (answer.num_beams, answer.temperature, answer.max_new_tokens) == (1, 0, 100)
    assert {cfg.dataset.templates for cfg in (fuse, text, stages["projector"])} == {"nle_2026"}
    assert fuse.dataset.unanswerable == text.dataset.unanswerable
    assert fuse.dataset.unanswerable.max_overlap == 0.1
    rows = (Sample(f"{i}", "sqa", "x", source_text=f"{i}" * 9, question=f"{i}?") for i in range(10))
    prompts = PromptTemplates.from_yaml("nle_2026")
    assert len(unanswerable_samples(list(rows), prompts, **fuse.dataset.unanswerable)) == 1


@pytest.mark.parametrize(
    ("recipe", "samples", "lengths"),
    [
        ("multimodal_fuse", 48, {"asr": (80, 121), "st": (86, 136), "sqa": (365,)}),
        ("lora_finetune_text", 128, {"mt": (66, 111), "qa": (218,)}),
    ],
)
def test_a_step_of_the_4b_has_about_as_many_samples_as_the_papers(recipe, samples, lengths):
    """Tokens of a sample, worked out by hand from each corpus.

    CoVoST has 5.3 s and 10 words, EuroParl-ST 9 s and 24, Spoken-SQuAD 49 s and 122; a second is
    6.25 vectors, a word 1.3 tokens in English and 1.9 in German; prompt and chat format take 34,
    question and answer 24.
    """
    cfg = stages_of("qwen3_4b")[recipe]
    tokens = cfg.rows_per_step * cfg.max_seq_len
    of_task = {task: np.mean([tokens / n for n in of]) for task, of in lengths.items()}
    found = sum(share * of_task[task] for task, share in cfg.mixture.task.items())
    assert 0.7 * samples < found < 1.4 * samples


def test_stage_2_for_llama_follows_the_paper():
    """https://arxiv.org/abs/2601.20417"""
    cfg = OmegaConf.load(config_path("llama3_1_8b-2026/projector"))
    assert (cfg.max_steps, cfg.rows_per_step, cfg.gradient_accumulation_steps) == (1000, 8, 8)
    rate = cfg.learning_rate.projector
    assert (rate.lr, rate.schedule, rate.warmup_steps) == (1e-4, "constant", 0)


@pytest.mark.parametrize("stage", [*(s for s, t in STAGES.items() if t), "speechmapper"])
def test_the_commented_logger_works_when_uncommented(stage):
    family = "llama3_1_8b-2026" if stage == "speechmapper" else "llama3_1_8b"
    text = config_path(f"{family}/{stage}").read_text()
    block = re.search(r"metric_logger: null\n((?:# .*\n)+)", text)[1]
    node = OmegaConf.create(re.sub(r"^# ", "", block, flags=re.M)).metric_logger
    fields = {k: v for k, v in node.items_ex(resolve=False) if k != "_component_"}
    assert signature_problem(locate(node._component_), (), fields) is None
    assert "${output_dir}" in fields["log_dir"]


@pytest.mark.parametrize("name", config.config_names())
def test_an_unknown_key_is_refused_by_name(name, run_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe, _ = config_header(config_path(name))
    near = "output" if "output" in OmegaConf.load(config_path(name)) else "output_dir"
    code, out, err = run_recipe(recipe, "--config", name, f"{near}x=1")
    assert (code, out) == (1, "")
    assert err.startswith(f"error: config: unknown key '{near}x'; did you mean '{near}'")
    assert err.count("\n") == 1
    assert list(Path(tmp_path).iterdir()) == []
