"""A world of seconds: a tiny random Llama with the nano tokenizer, a few utterances of noise."""

import json
from pathlib import Path

import torch
import yaml
from tiny_qwen3 import make_qwen3
from torchtune.models.llama3 import llama3_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from torchtune_speech import models
from torchtune_speech.config import config_path
from torchtune_speech.data import Qwen3ChatFormat, chat_format
from torchtune_speech.features import FeatureWriter, finalize_store
from torchtune_speech.nano._tokenizer import write_tokenizer

DIM, FRAME_DIM = 32, 12
FAMILIES = ("llama", "qwen3")
_BUILDERS = {"llama": "speech_llama3_1_from_hf", "qwen3": "speech_qwen3_from_hf"}
SENTENCES = [
    "The doctor waits in the garden.",
    "The nurse sings in the library every year.",
    "The queen works.",
    "The tired painter sleeps on the mountain.",
    "The baker sells six expensive guitars on the island.",
    "The farmer works in the cellar.",
    "The singer sleeps.",
    "The doctor buys six books.",
]


def make_llm(folder: Path, *, family: str = "llama", tie: bool = False, seed: int = 0) -> Path:
    """A random Llama-3.1, or Qwen3, in Hugging Face format, in float32."""
    if family == "qwen3":
        return make_qwen3(folder, tie=tie, seed=seed, dim=DIM)
    folder.mkdir(parents=True)
    vocab_size = write_tokenizer(folder)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=DIM,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=tie,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 500_000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
            initializer_range=0.3,
        )
    )
    model.save_pretrained(folder)
    return folder


def family_of(folder: Path) -> str:
    """Family of a tiny LLM; of a folder with a tokenizer alone, Llama."""
    file = folder / "config.json"
    return json.loads(file.read_text())["model_type"] if file.exists() else "llama"


def builder_name(family: str, lora: bool = False) -> str:
    """What builds a SpeechLLM of a folder of this family, as configs name it."""
    return f"torchtune_speech.models.{'lora_' if lora else ''}{_BUILDERS[family]}"


def build_llm(folder: Path, *args, **lora):
    """A SpeechLLM of a folder, without its weights; with LoRA if a setting of LoRA is given."""
    name = builder_name(family_of(folder), bool(lora)).rsplit(".", 1)[1]
    return getattr(models, name)(str(folder), *args, **lora)


def make_chat(folder: Path):
    """Chat format of the tiny LLM."""
    return chat_format(make_tokenizer(folder))


def make_tokenizer(folder: Path):
    """torchtune's tokenizer of the tiny Llama, or the chat format of the tiny Qwen3."""
    if family_of(folder) == "qwen3":
        return Qwen3ChatFormat(str(folder))
    return llama3_tokenizer(str(folder / "tokenizer.model"), str(folder / "tokenizer.json"))


def make_data(folder: Path) -> Path:
    """A manifest with asr, st, sqa and text rows, and a store with frames of noise."""
    folder.mkdir(parents=True)
    rows = []
    for i, sentence in enumerate(SENTENCES):
        speech = {
            "audio": f"{i}.wav",
            "source_text": sentence,
            "domain": "tiny",
            "speaker": f"s{i % 2}",
        }
        rows.append({"id": f"{i}-asr", "task": "asr", "target": sentence, **speech})
        for lang in ("de", "it"):
            rows.append(
                {
                    "id": f"{i}-st-{lang}",
                    "task": "st",
                    "target_lang": lang,
                    "target": sentence[::-1],
                    **speech,
                }
            )
        rows.append(
            {
                "id": f"{i}-sqa",
                "task": "sqa",
                "question": "Who?",
                "target": sentence.split()[1],
                **speech,
            }
        )
        rows.append(
            {
                "id": f"{i}-mt",
                "task": "mt",
                "target_lang": "de",
                "source_text": sentence,
                "target": sentence.upper(),
            }
        )
    (folder / "manifest.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    writer_of_frames(folder / "features")
    return folder


def writer_of_frames(folder: Path) -> None:
    """Frames of noise, 5 to 26 an utterance."""
    generator = torch.Generator().manual_seed(0)
    fingerprint = {"encoder": "noise", "dim": FRAME_DIM, "frames_per_second": 50.0}
    with FeatureWriter(folder, fingerprint, dtype=torch.float32) as writer:
        for i in range(len(SENTENCES)):
            writer.add(
                f"{i}.wav", torch.randn(5 + 3 * i, FRAME_DIM, generator=generator), seconds=1.0 + i
            )
    finalize_store(folder)


PROJECTOR = {
    "_component_": "torchtune_speech.models.transformer_projector",
    "in_dim": FRAME_DIM,
    "out_dim": DIM,
    "embed_dim": 16,
    "num_layers": 1,
    "num_heads": 2,
}


def write_config(world, recipe, **changes):
    """The packaged nano config, pointed at the tiny world."""
    family = "nano-2026" if recipe == "speechmapper" else "nano"
    cfg = yaml.safe_load(open(config_path(f"{family}/{recipe}")))
    cfg["llm_dir"] = str(world / "llm")
    if (family := family_of(world / "llm")) != "llama":
        if "model" in cfg:  # stage 1 of SpeechMapper has none
            cfg["model"]["_component_"] = builder_name(family, "lora_rank" in cfg["model"])
        cfg["tokenizer"] = {
            "_component_": "torchtune_speech.data.Qwen3ChatFormat",
            "path": "${llm_dir}",
        }
    for name in ("dataset", "eval_dataset"):
        if cfg.get(name):
            cfg[name]["manifest"] = str(world / "data" / "manifest.jsonl")
            if "features" in cfg[name]:
                cfg[name]["features"] = str(world / "data" / "features")
    if "projector" in cfg:
        labels = json.loads((world / "llm" / "config.json").read_text())["vocab_size"] + 1
        cfg["projector"] = PROJECTOR | {"ctc_vocab_size": labels}
    if recipe == "lora_finetune_text":
        cfg["dataset"]["text_twins"] = True
        cfg["dataset"]["tasks"] = cfg["eval_dataset"]["tasks"] = ["st", "sqa", "mt"]
    small = {"max_seq_len": 160, "max_new_tokens": 4}
    if "max_steps" in cfg:
        small |= {
            "max_steps": 6,
            "rows_per_step": 3,
            "eval_every_n_steps": None,
            "eval_samples": 4,
            "keep_last": None,
        }
    if recipe == "speechmapper":
        for name in ("max_seq_len", "max_new_tokens"):
            del small[name]
        small["max_frames"] = 60
        cfg["dataset"]["speeds"] = [1.0]  # the store has no others
        for name in ("dataset", "eval_dataset"):  # of the shortest, with fewer vectors than tokens
            cfg[name]["on_too_long"] = "skip"
    if recipe == "projector":  # what suits the nano world's data and takes hundreds of steps
        small |= {"mixture": None, "ctc_only_steps": 0}
    cfg |= small | changes
    file = world / f"{recipe}.yaml"
    file.write_text(yaml.safe_dump(cfg, sort_keys=False))
    return file


def prediction_row(task, lang, target, prediction, number):
    """A row of a predictions file."""
    return {
        "id": f"{number}-{task}-{lang}",
        "task": task,
        "source_lang": "en",
        "target_lang": lang,
        "domain": "nano",
        "target": target,
        "prediction": prediction,
        "finish_reason": "stop",
        "prompt_tokens": 30,
        "num_tokens": 3,
    }
