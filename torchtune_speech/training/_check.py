"""Settings, data and checkpoints that do not fit: refused before anything is loaded or written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from torchtune_speech.data import SpeechDataset
from torchtune_speech.errors import InputError
from torchtune_speech.features import check_fingerprint
from torchtune_speech.training._checkpoint import is_peft_folder, read_stage

_COUNTS = (
    "rows_per_step",
    "gradient_accumulation_steps",
    "max_seq_len",
    "max_new_tokens",
    "eval_samples",
    "eval_batch_size",
    "batch_size",
)
_COUNTS_OR_NULL = (
    "max_steps",
    "epochs",
    "eval_every_n_steps",
    "save_every_n_steps",
    "keep_last",
    "limit",
)
# What the steps of a plan depend on, besides the data.
_PLAN_KEYS = ("mixture", "paired", "max_seq_len", "rows_per_step", "seed")


def check_counts(cfg: DictConfig) -> None:
    """Refuse numbers of rows, steps, samples and tokens that are no counts.

    Args:
        cfg: configuration of a training or generation recipe.

    Raises:
        InputError: naming the first key that is not a whole number of 1 or more.
    """
    for key in (*_COUNTS, *_COUNTS_OR_NULL):
        value = cfg.get(key, 1)
        if value is None and key in _COUNTS_OR_NULL:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            null = ", or null" if key in _COUNTS_OR_NULL else ""
            raise InputError(f"{key}: {value!r}; give a whole number of 1 or more{null}")


def check_projector(
    projector: nn.Module,
    dataset: SpeechDataset,
    *,
    needs_ctc: bool = False,
    key: str = "dataset",
) -> None:
    """Refuse frames and CTC labels that do not fit the projector.

    Args:
        projector: the projector.
        dataset: whose frames it is to read.
        needs_ctc: whether the data has to have CTC labels.
        key: config key of the data.

    Raises:
        InputError: naming both sides of what does not fit.
    """
    if dataset.store is not None:
        check_frame_width(projector, dataset.store.dim, f"the frames of {dataset.store.path}")
    if dataset.ctc is None:
        if needs_ctc:
            raise InputError(
                f"{key}.ctc: the CTC loss needs labels; set it to characters or tokens, "
                "or ctc_weight and ctc_only_steps to 0"
            )
        return
    head, labels = getattr(projector, "ctc_proj", None), dataset.ctc.size
    size = None if head is None else head.out_features
    if size != labels:
        raise InputError(
            f"projector.ctc_vocab_size: {size or 'null'}, but {key}.ctc has {labels} labels; "
            f"set projector.ctc_vocab_size={labels}, or {key}.ctc=null"
        )


def check_frame_width(projector: nn.Module, dim: int, frames: str) -> None:
    """Refuse frames of another width than the projector reads.

    Args:
        projector: the projector.
        dim: width of the frames.
        frames: what they are, for the message.

    Raises:
        InputError: if the widths differ.
    """
    if dim != projector.in_dim:
        raise InputError(
            f"projector.in_dim: {projector.in_dim}, but {frames} are {dim} wide; "
            f"set projector.in_dim={dim}, or take frames of the encoder it was made for"
        )


def check_checkpoint_fits(path: str | Path, found: Mapping[str, Any], *, store: bool) -> None:
    """Refuse a checkpoint that was trained with another LLM or on other encoder frames.

    Args:
        path: the checkpoint. A PEFT folder from elsewhere tells nothing of itself and is accepted.
        found: fingerprints of this run.
        store: whether its frames matter (they do not for LoRA trained on text).

    Raises:
        InputError: naming the field that differs.
    """
    if is_peft_folder(path):
        return
    expected = read_stage(path)["fingerprints"]
    if expected["llm"]["digest"] != found["llm"]["digest"]:
        raise InputError(
            f"{path}: trained with the LLM {expected['llm']['name']!r}, "
            f"this run uses {found['llm']['name']!r} (another model, or changed files); "
            "set llm_dir to the folder it was trained with"
        )
    if store and expected["store"] and found["store"]:
        check_fingerprint(
            expected["store"], found["store"], f"{path} against this run's feature store"
        )


def check_resume(path: str | Path, cfg: DictConfig, found: Mapping[str, Any]) -> None:
    """Refuse to go on with other data or other steps than a run began with.

    Args:
        path: checkpoint of the run.
        cfg: this configuration.
        found: fingerprints of this run.

    Raises:
        InputError: naming what differs.
    """
    check_checkpoint_fits(path, found, store=True)
    stage, now = read_stage(path), OmegaConf.to_container(cfg, resolve=True)
    cure = "go on with what the run began with, or start a new one in another output_dir"
    if stage["fingerprints"]["data"] != found["data"]:
        raise InputError(f"{path}: resume=true, but the data of the run was another; {cure}")
    for key in _PLAN_KEYS:
        then = stage["config"].get(key)
        if then != now.get(key):
            raise InputError(
                f"{path}: resume=true, but {key} was {then!r} and is {now.get(key)!r}; {cure}"
            )
