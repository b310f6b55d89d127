"""The small LLM: a Llama-3.1 of under three million parameters, pretrained on text alone.

It stands in for a Llama-3.1 from the hub and is kept in the same files. It has habits of its own
(see `_lm_text`), which a projector trained through it can use and text LoRA can build on.
"""

import hashlib
import math
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchtune.models.llama3 import Llama3Tokenizer, llama3_tokenizer
from torchtune.utils import get_logger
from tqdm import tqdm
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from torchtune_speech.errors import InputError
from torchtune_speech.files import atomic_write, read_json, read_jsonl, write_json
from torchtune_speech.nano._tokenizer import write_tokenizer

IGNORE_INDEX = -100
# Rows that are sorted by length before they are cut into batches: little padding, good mixing.
_BATCHES_SORTED_TOGETHER = 8


def nano_llama_config(vocab_size: int, **changes: Any) -> LlamaConfig:
    """Describes the small Llama-3.1: grouped queries, scaled rotary embedding, tied embeddings.

    Args:
        vocab_size: Number of tokens.
        **changes: Arguments of `transformers.LlamaConfig` to set otherwise.

    Returns:
        The configuration.
    """
    settings = {
        "hidden_size": 192,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 512,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        # Tied, as in the smaller models of the family: what is copied need not be learnt twice.
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        # A base for texts of a hundred tokens, in which each position has to differ from the next.
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    }
    return LlamaConfig(vocab_size=vocab_size, **(settings | changes))


def pretrain_llm(
    data_dir: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    steps: int = 1800,
    batch_size: int = 24,
    learning_rate: float = 0.01,
    embedding_learning_rate: float = 0.01,
    warmup_steps: int = 60,
    seed: int = 0,
    own_tokenizer: bool = False,
    **changes: Any,
) -> dict[str, Any]:
    """Pretrains the small LLM on `lm_text.jsonl` and writes it as a Hugging Face folder.

    Does nothing when the folder is there already. The folder holds `config.json`,
    `generation_config.json`, `model.safetensors`, the tokenizer's files (see `write_tokenizer`)
    and `nano.json`, which says how it was made.

    Args:
        data_dir: A folder of `build_world`.
        out_dir: The folder to make; it appears when everything in it is complete.
        steps: Optimizer steps.
        batch_size: Rows a step.
        learning_rate: Of Muon, which trains the layers' matrices, at its peak; linear warm-up, then
            cosine to zero.
        embedding_learning_rate: Of AdamW, which trains embeddings and norms, on the same schedule.
        warmup_steps: Steps until the peak.
        seed: Seed of weights and order.
        own_tokenizer: Take the tokenizer's words from the rows instead of the nano world.
        **changes: Arguments of `transformers.LlamaConfig`, such as `hidden_size`.

    Returns:
        What `nano.json` holds: settings, number of parameters, last loss, seconds.

    Raises:
        InputError: When the data folder is no nano world, or the output folder holds other things
            or an LLM made otherwise.

    Example:
        >>> pretrain_llm("runs/nano/data", "runs/nano/llm")["loss"]
    """
    data_path, out_dir = Path(data_dir) / "lm_text.jsonl", Path(out_dir)
    if not data_path.exists():
        raise InputError(
            f"{data_path}: not there; python -m torchtune_speech.nano world --out {data_dir}"
        )
    settings = {
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "embedding_learning_rate": embedding_learning_rate,
        "warmup_steps": warmup_steps,
        "seed": seed,
        "own_tokenizer": own_tokenizer,
        "changes": changes,
        "lm_text": hashlib.sha256(data_path.read_bytes()).hexdigest(),
    }
    if (out_dir / "nano.json").exists():
        return _existing_llm(out_dir, settings)
    if out_dir.exists() and any(out_dir.iterdir()):
        raise InputError(f"{out_dir}: not empty and no nano LLM; name another folder")
    with atomic_write(out_dir) as folder:
        folder.mkdir()
        texts = read_jsonl(data_path)
        words = (" ".join(chain(*row["turns"])) for row in texts) if own_tokenizer else None
        vocab_size = write_tokenizer(folder, words)
        tokenizer = load_tokenizer(folder)
        rows = [encode_row(row, tokenizer) for row in texts]
        torch.manual_seed(seed)
        model = LlamaForCausalLM(nano_llama_config(vocab_size, **_token_ids(tokenizer), **changes))
        started = time.perf_counter()
        loss = _train(
            model,
            _batches(rows, batch_size, steps, tokenizer.pad_id, random.Random(seed)),
            steps=steps,
            learning_rate=learning_rate,
            embedding_learning_rate=embedding_learning_rate,
            warmup_steps=warmup_steps,
        )
        model.generation_config = GenerationConfig(**_token_ids(tokenizer), do_sample=False)
        model.save_pretrained(folder)
        summary = {
            **settings,
            "parameters": model.num_parameters(),
            "loss": round(loss, 4),
            "seconds": round(time.perf_counter() - started, 1),
        }
        write_json(folder / "nano.json", summary)
    return summary


def _existing_llm(out_dir: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Summary of an LLM that is there, which must have been made of the same."""
    summary = read_json(out_dir / "nano.json")
    # An LLM of an older version does not tell all of it.
    other = [name for name, value in settings.items() if summary.get(name, value) != value]
    if other:
        told = ", ".join(f"{name} {summary[name]!r}" for name in other if name != "lm_text")
        raise InputError(
            f"{out_dir}: there already, made with {told or 'another lm_text.jsonl'}; remove it or "
            "name another folder"
        )
    get_logger("INFO").info(f"{out_dir} is there already")
    return summary


def load_tokenizer(folder: str | os.PathLike[str]) -> Llama3Tokenizer:
    """Loads torchtune's tokenizer from the files of `write_tokenizer`.

    Args:
        folder: The folder of the LLM.

    Returns:
        The tokenizer.
    """
    # tiktoken would keep a copy under the file's path for good, and give that one after a rebuild.
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", "")
    folder = Path(folder)
    return llama3_tokenizer(str(folder / "tokenizer.model"), str(folder / "tokenizer.json"))


def encode_row(row: dict[str, Any], tokenizer: Llama3Tokenizer) -> tuple[list[int], list[int]]:
    """Turns a row of `lm_text.jsonl` into tokens and labels.

    A row is a conversation in Llama-3's chat format, in which the answers with their ends are
    learnt; a row whose only turn has no question is running text, all of it learnt.

    Args:
        row: `turns`, pairs of question and answer.
        tokenizer: Of the LLM.

    Returns:
        Tokens and, of the same length, the next token at learnt positions and -100 elsewhere.
    """

    def text(content: str) -> list[int]:
        return tokenizer.encode(content, add_bos=False, add_eos=False)

    def header(role: str) -> list[int]:
        ids = [tokenizer.start_header_id, *text(role), tokenizer.end_header_id]
        return [*ids, *text("\n\n")]

    tokens, labels = [tokenizer.bos_id], [IGNORE_INDEX]
    for question, answer in row["turns"]:
        given = []
        if question:
            given = [*header("user"), *text(question), tokenizer.eot_id, *header("assistant")]
        learnt = [*text(answer), tokenizer.eot_id if question else tokenizer.eos_id]
        tokens += given + learnt
        labels += [IGNORE_INDEX] * len(given) + learnt
    return tokens[:-1], labels[1:]


def _token_ids(tokenizer: Llama3Tokenizer) -> dict[str, Any]:
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": [tokenizer.eos_id, tokenizer.eom_id, tokenizer.eot_id],
        "pad_token_id": tokenizer.pad_id,
    }


def _batches(
    rows: Sequence[tuple[list[int], list[int]]],
    batch_size: int,
    steps: int,
    pad_id: int,
    rng: random.Random,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields tokens and labels [b, s], padded on the right: causal attention needs no mask."""
    pending: list[list[int]] = []
    for _ in range(steps):
        if not pending:
            wanted = batch_size * _BATCHES_SORTED_TOGETHER
            drawn = rng.sample(range(len(rows)), min(wanted, len(rows)))
            drawn.sort(key=lambda index: len(rows[index][0]))
            pending = [drawn[at : at + batch_size] for at in range(0, len(drawn), batch_size)]
            rng.shuffle(pending)
        batch = [rows[index] for index in pending.pop()]
        tokens, labels = zip(*batch, strict=True)
        yield _padded(tokens, pad_id), _padded(labels, IGNORE_INDEX)


def _padded(sequences: Sequence[list[int]], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(sequence) for sequence in sequences], batch_first=True, padding_value=value
    )


def _train(
    model: LlamaForCausalLM,
    batches: Iterator[tuple[Tensor, Tensor]],
    *,
    steps: int,
    learning_rate: float,
    embedding_learning_rate: float,
    warmup_steps: int,
) -> float:
    """Trains the model in place; returns the mean loss of the last twentieth of the steps."""
    # Copying, on which all else rests, emerges several times sooner under Muon than under AdamW.
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    known = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in known]
    optimizers = [
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.0),
        torch.optim.AdamW(others, lr=embedding_learning_rate, betas=(0.9, 0.95), weight_decay=0.01),
    ]

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * progress))

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, factor) for optimizer in optimizers]
    losses: list[float] = []
    progress = tqdm(batches, total=steps, desc="pretraining the LLM", unit="step")
    model.train()
    for tokens, labels in progress:
        hidden = model.model(tokens, use_cache=False).last_hidden_state
        learnt = labels != IGNORE_INDEX
        loss = F.cross_entropy(model.lm_head(hidden[learnt]), labels[learnt])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        losses.append(loss.item())
        progress.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    recent = losses[-max(1, steps // 20) :]
    return sum(recent) / len(recent)
