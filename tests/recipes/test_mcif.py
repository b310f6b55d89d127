"""The way of an official source file: features, predictions, output file, scores."""

import json

import numpy as np
import pytest
import soundfile
from tiny_world import make_llm, write_config

from torchtune_speech.data import read_mcif_output, read_mcif_source, write_mcif_output
from torchtune_speech.evaluation import mcif_scores, read_mcif_reference
from torchtune_speech.files import read_jsonl

SOURCE = """<testset name="tiny"><task track="short" text_lang="en">
<sample id="0"><audio_path>0.wav</audio_path>
<instruction>Transcribe the English content.</instruction></sample>
<sample id="5"><audio_path>1.wav</audio_path>
<instruction>Answer the following question concisely given the English content: Who?</instruction>
</sample></task></testset>
"""
REFERENCES = """<testset name="tiny"><task track="short" text_lang="en">
<sample id="0" iid="a" task="ASR"><reference>The singer sleeps.</reference></sample>
<sample id="5" iid="b" task="QA"><reference>The singer.</reference></sample></task></testset>
"""


@pytest.fixture
def world(tmp_path, run_recipe):
    """Two recordings of noise, their source file, and a projector after one step."""
    make_llm(tmp_path / "llm")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "source.xml").write_text(SOURCE)
    (tmp_path / "data" / "reference.xml").write_text(REFERENCES)
    rows = []
    for i in range(2):
        noise = np.random.default_rng(i).normal(size=8000 + 3000 * i) * 0.1
        soundfile.write(tmp_path / "data" / f"{i}.wav", noise, 16000)
        rows.append({"id": f"{i}", "task": "asr", "audio": f"{i}.wav", "target": "The singer."})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "data" / "manifest.jsonl").write_text(text)
    words = [f"manifest={tmp_path / 'data' / 'source.xml'}"]
    words += [f"output_dir={tmp_path / 'data' / 'features'}", "dtype=fp32"]
    code, _, err = run_recipe("extract_features", "--config", "nano/extract_features", *words)
    assert code == 0, err
    for recipe in ("projector", "speech_generate"):
        write_config(tmp_path, recipe)
    words = [f"output_dir={tmp_path / 'A'}", "max_steps=1", "eval_dataset=null", "num_workers=0"]
    words += ["projector.in_dim=160", "dataset.tasks=[asr]", "rows_per_step=1"]
    code, _, err = run_recipe("projector", "--config", tmp_path / "projector.yaml", *words)
    assert code == 0, err
    return tmp_path


def test_from_source_to_scores(world, run_recipe):
    source = world / "data" / "source.xml"
    words = ["--config", world / "speech_generate.yaml", "projector.in_dim=160"]
    words += [f"projector_checkpoint={world / 'A'}", f"output={world / 'predictions.jsonl'}"]
    words += [f"dataset.manifest={source}", "dataset.require_target=false"]
    code, _, err = run_recipe("speech_generate", *words)
    assert code == 0, err
    rows = read_jsonl(world / "predictions.jsonl")
    assert [(row["id"], row["task"], row.get("question")) for row in rows] == [
        ("0", "asr", None),
        ("5", "sqa", "Who?"),
    ]

    texts = {row["id"]: row["prediction"] for row in rows}
    ids = [row["id"] for row in read_mcif_source(source)]
    words = {"track": "short", "text_lang": "en", "name": "tiny", "expected_ids": ids}
    write_mcif_output(world / "out.xml", texts, **words)
    output = read_mcif_output(world / "out.xml")
    assert list(output.texts) == ["0", "5"]

    reference = read_mcif_reference(world / "data" / "reference.xml")
    report = mcif_scores(output.texts, reference, "en", bertscore=lambda p, r, lang: len(p))
    assert report["scores"]["QA-BERTScore"] == 1
    assert report["details"]["ASR"]["reference_words"] == 3
    assert report["scores"]["ASR-WER"] > 0
