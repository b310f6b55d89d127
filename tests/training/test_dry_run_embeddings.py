"""The dry run of stage 1: exact counts at the real size, no file needed."""

import re

import pytest
from omegaconf import OmegaConf

from torchtune_speech import training
from torchtune_speech.config import config_path
from torchtune_speech.errors import InputError

TABLE = 128_256 * 4096


def make_config(**changes):
    cfg = OmegaConf.load(config_path("llama3_1_8b-2026/speechmapper"))
    return OmegaConf.merge(cfg, {"llm_dir": "nowhere"}, changes)


def test_8b_fits_a_small_gpu_without_any_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = make_config()
    report = training.embeddings_dry_run_report(cfg)
    assert list(tmp_path.iterdir()) == []
    trained = int(re.search(r"projector +([\d,]+)", report)[1].replace(",", ""))
    assert trained == pytest.approx(277e6, rel=0.01)
    assert f"{TABLE:,}" in report and "SYNTHETIC lengths (25 frames a second), since" in report
    assert len(re.findall(r"^  \d +4 ", report, flags=re.M)) == 6
    memory = training.predict_embeddings_memory(cfg)
    assert memory.parts["frozen weights"] == 2 * TABLE
    assert memory.parts["trained weights"] == 4 * trained
    assert 8 * trained <= memory.parts["optimizer state"] < 8.001 * trained
    assert memory.total < 24e9


def test_rows_the_contrast_and_processes_count():
    def parts(world_size=1, **changes):
        return training.predict_embeddings_memory(make_config(**changes), world_size).parts

    work, plain = "activations, temporaries", parts()
    contrast = parts(loss={"contrast": 0.1})
    assert contrast["frozen weights"] == 2 * plain["frozen weights"]
    assert parts(rows_per_step=8)[work] > 1.5 * plain[work]
    shared = parts(world_size=4)
    assert shared[work] < 0.5 * plain[work]
    assert shared["optimizer state"] == plain["optimizer state"]  # whole in each
    assert parts(gradient_accumulation_steps=4)[work] < 0.5 * plain[work]


def test_the_rows_of_the_table_must_be_known():
    with pytest.raises(InputError, match="vocab_size: null, and nowhere is not there to tell it"):
        training.embeddings_dry_run_report(make_config(vocab_size=None))


def test_what_the_run_refuses_is_refused_without_data():
    qwen = OmegaConf.load(config_path("qwen3_4b/speechmapper"))
    qwen.llm_dir = "nowhere"
    qwen.projector.ctc_vocab_size = None
    with pytest.raises(InputError, match="projector.ctc_vocab_size: null, but the CTC loss needs"):
        training.embeddings_dry_run_report(qwen)
    qwen.projector |= {"ctc_vocab_size": 39, "ctc_compress": True}
    qwen.loss.ctc = 0
    with pytest.raises(InputError, match="loss.ctc: 0, but projector.ctc_compress needs a head"):
        training.embeddings_dry_run_report(qwen)
