"""Settings, data and checkpoints that do not fit: refused before anything is loaded or written."""

import inspect
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn
from torchtune.utils import get_logger, log_rank_zero

from torchtune_speech.config import locate
from torchtune_speech.data import SpeechDataset, TokenLabels, TranscriptDataset, resolve_token
from torchtune_speech.errors import InputError, did_you_mean
from torchtune_speech.features import check_fingerprint
from torchtune_speech.models import check_quantize, read_hf_config
from torchtune_speech.training._checkpoint import (
    is_peft_folder,
    projector_digest,
    read_stage,
    stage_1_fingerprint,
)
from torchtune_speech.training._embedding_objective import PARTS, EmbeddingLoss
from torchtune_speech.training._transcript_normalizer import transcript_normalizer

_COUNTS = (
    "rows_per_step",
    "gradient_accumulation_steps",
    "max_seq_len",
    "max_frames",
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
    "vocab_size",
)
_COUNTS_FROM_0 = ("seed", "num_workers")
_WEIGHTS = ("ctc_weight", "embedding_weight")
# What the steps of a plan depend on, besides the data.
_PLAN_KEYS = ("mixture", "paired", "max_seq_len", "max_frames", "rows_per_step", "seed")
# What a projector is taught to say.
_TAUGHT_KEYS = ("pad_token", "normalizer")
# What may be changed within a run, so that it is no longer the run that would not have stopped.
_STEP_KEYS = (
    "learning_rate",
    "optimizer",
    "max_steps",
    "epochs",
    "ctc_weight",
    "ctc_only_steps",
    "embedding_weight",
    "embedding_blank",
    "sigma",
    "spec_augment",
    "clip_grad_norm",
    "on_nonfinite",
    "dtype",
    "quantize",
    "loss",
    "contrast_temperature",
    "pad_weight",
)
_OF_CTC_HEAD = ("ctc_vocab_size", "ctc_block", "ctc_layer")  # of a projector
_log = get_logger("INFO")


def check_settings(cfg: DictConfig) -> None:
    """Refuse numbers of rows, steps, samples and tokens that are no counts, and other odd values.

    Args:
        cfg: configuration of a training or generation recipe.

    Raises:
        InputError: naming the first key whose value cannot be.
    """
    for key in (*_COUNTS, *_COUNTS_OR_NULL):
        value = cfg.get(key, 1)
        if value is None and key in _COUNTS_OR_NULL:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            null = ", or null" if key in _COUNTS_OR_NULL else ""
            raise InputError(f"{key}: {value!r}; give a whole number of 1 or more{null}")
    for key in _COUNTS_FROM_0:
        value = cfg.get(key, 0)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise InputError(f"{key}: {value!r}; give a whole number of 0 or more")
    for key in _WEIGHTS:
        if not _is_number(cfg.get(key, 0)) or cfg.get(key, 0) < 0:
            raise InputError(f"{key}: {cfg[key]!r}; give a number, 0 for none")
    sigma = cfg.get("sigma", 0)
    if not _is_number(sigma) or not 0 <= sigma <= 1:
        raise InputError(f"sigma: {sigma!r}; give a number from 0 to 1")
    steps = cfg.get("ctc_only_steps", 0)
    if not _is_number(steps) or steps != int(steps) or steps < 0:
        raise InputError(f"ctc_only_steps: {steps!r}; give a whole number, 0 for none")
    norm = cfg.get("clip_grad_norm")
    if norm is not None and (not _is_number(norm) or norm <= 0):
        raise InputError(f"clip_grad_norm: {norm!r}; give a number above 0, or null")
    if cfg.get("on_nonfinite", "fail") not in ("fail", "skip"):
        raise InputError(f"on_nonfinite: {cfg.on_nonfinite!r}; use fail or skip")
    recompute = cfg.get("activation_checkpointing", False)
    if not isinstance(recompute, bool) and recompute != "auto":
        raise InputError(f"activation_checkpointing: {recompute!r}; use auto, true or false")
    check_quantize(cfg.get("quantize"))
    if cfg.get("embedding_weight", 0) > 0 and not steps:
        log_rank_zero(
            _log,
            "embedding_weight: plays no part, since ctc_only_steps is 0",
            logging.WARNING,
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_embedding_loss(
    weights: Any, *, temperature: Any = 0.05, pad_weight: Any = 1.0
) -> EmbeddingLoss:
    """Read the config's ``loss`` node.

    Args:
        weights: part to weight; parts that are not named count nothing.
        temperature: of the contrast.
        pad_weight: what a pad counts.

    Returns:
        The loss.

    Raises:
        InputError: if a part is unknown, a number is none, or nothing counts.
    """
    if not isinstance(weights, Mapping):
        raise InputError(f"loss: {weights!r}; give weights of {', '.join(PARTS)}")
    for name in weights:
        if name not in PARTS:
            hint = did_you_mean(str(name), PARTS) or f"; choose from {', '.join(PARTS)}"
            raise InputError(f"loss.{name}: unknown part{hint}")
    numbers = {f"loss.{k}": v for k, v in weights.items()} | {"pad_weight": pad_weight}
    for key, value in numbers.items():
        if not _is_number(value) or value < 0:
            raise InputError(f"{key}: {value!r}; give a number, 0 for none")
    if not _is_number(temperature) or temperature <= 0:
        raise InputError(f"contrast_temperature: {temperature!r}; give a number above 0")
    loss = EmbeddingLoss(**weights, temperature=temperature, pad_weight=pad_weight)
    if not loss.weights:
        raise InputError(f"loss: all weights are 0; raise one of {', '.join(PARTS)}")
    return loss


def check_projector(
    projector: nn.Module,
    dataset: SpeechDataset | TranscriptDataset,
    *,
    needs_ctc: bool = False,
    only_speech: bool = False,
    key: str = "dataset",
    ctc_key: str = "ctc_weight and ctc_only_steps",
) -> None:
    """Refuse frames and CTC labels that do not fit the projector.

    Args:
        projector: the projector.
        dataset: whose frames it is to read.
        needs_ctc: whether the data has to have CTC labels.
        only_speech: whether each sample has to have speech, since only the projector is trained.
        key: config key of the data.
        ctc_key: config key, or keys, of the weight of the CTC loss.

    Raises:
        InputError: naming both sides of what does not fit.
    """
    if dataset.store is not None:
        check_frame_width(projector, dataset.store.dim, f"the frames of {dataset.store.path}")
    text = next((s.id for s in dataset.samples if not s.is_speech), None)
    if only_speech and text is not None:
        raise InputError(
            f"{key}: sample {text} has no speech, from which a projector could learn; "
            f"take tasks with speech ({key}.tasks)"
        )
    if dataset.ctc is None:
        if needs_ctc:
            raise InputError(
                f"{key}.ctc: the CTC loss needs labels; set it to characters or tokens, "
                f"or {ctc_key} to 0"
            )
        return
    head, labels = getattr(projector, "ctc_proj", None), dataset.ctc.size
    size = None if head is None else head.out_features
    if size != labels:
        raise InputError(
            f"projector.ctc_vocab_size: {size or 'null'}, but {key}.ctc has {labels} labels; "
            f"set projector.ctc_vocab_size={labels}, or {key}.ctc=null"
        )
    if getattr(projector, "compresses_by_ctc", False) and not isinstance(dataset.ctc, TokenLabels):
        raise InputError(
            f"{key}.ctc: projector.ctc_compress counts the LLM's tokens, these labels are "
            f"characters; set {key}.ctc=tokens, or projector.ctc_compress=false"
        )


def check_ctc_head(projector: nn.Module, ctc_key: str) -> None:
    """Refuse a CTC loss of a projector that has no head for it.

    Args:
        projector: the projector.
        ctc_key: config key, or keys, of the weight of the CTC loss.

    Raises:
        InputError: saying what to set.
    """
    if getattr(projector, "ctc_proj", None) is None:
        raise InputError(
            "projector.ctc_vocab_size: null, but the CTC loss needs a head; set it to the number "
            f"of labels of dataset.ctc and the blank, or {ctc_key} to 0"
        )


def check_ctc_compress(projector: nn.Module, ctc_weight: float, ctc_key: str) -> None:
    """Refuse to train a projector that compresses by its CTC head, without a loss for the head.

    What is below the head would be trained on, and the head would go deaf.

    Args:
        projector: the projector.
        ctc_weight: weight of the CTC loss.
        ctc_key: its config key.

    Raises:
        InputError: saying what to set.
    """
    if getattr(projector, "compresses_by_ctc", False) and not ctc_weight > 0:
        raise InputError(
            f"{ctc_key}: 0, but projector.ctc_compress needs a head that hears, in every stage; "
            "raise it, or set projector.ctc_compress=false from stage 1 on"
        )


def check_mapper(
    projector: nn.Module,
    dataset: TranscriptDataset | None,
    eval_dataset: TranscriptDataset | None = None,
    *,
    ctc_weight: float,
    llm_dir: str | Path,
    vocab_size: int | None,
    pad_token: str | int,
) -> None:
    """Refuse what does not fit together in recipe ``speechmapper``: projector, loss, data, LLM.

    Args:
        projector: the projector.
        dataset: training data; None where it is not there.
        eval_dataset: dev data; None for none.
        ctc_weight: weight of the CTC loss.
        llm_dir: Hugging Face folder of the LLM; nothing is refused for it where it is not there.
        vocab_size: rows that its embedding table is to have; None for any.
        pad_token: as the config gives it.

    Raises:
        InputError: naming the key to change.
    """
    if dataset is not None:
        check_projector(projector, dataset, needs_ctc=ctc_weight > 0, ctc_key="loss.ctc")
    if eval_dataset is not None:
        check_projector(projector, eval_dataset, key="eval_dataset")
    if ctc_weight > 0:
        check_ctc_head(projector, "loss.ctc")
    check_ctc_compress(projector, ctc_weight, "loss.ctc")
    if not (Path(llm_dir) / "config.json").is_file():
        return
    rows = read_hf_config(llm_dir)["vocab_size"]
    if vocab_size not in (None, rows):
        raise InputError(
            f"vocab_size: {vocab_size}, but the embedding table of {llm_dir} has "
            f"{rows} rows; set vocab_size={rows}, or null"
        )
    if dataset is not None:
        check_pad_token(pad_token, dataset.pad_token, llm_dir)


def target_settings(
    sigma: float, pad_token: str | int | None, normalizer: str | None
) -> dict[str, Any]:
    """What :func:`torchtune_speech.datasets.speech_dataset` needs to make target tokens.

    They are made at sigma 0, too, where a pad token is given: rows with too few vectors for them
    are left out whatever sigma is, so that it alone differs between runs. A normaliser without a
    pad token is for the CTC labels.

    Args:
        sigma: weight of the squared error to their embeddings.
        pad_token: fills up a transcript; None, which needs a sigma of 0, for no targets.
        normalizer: name of a normaliser, see :func:`transcript_normalizer`; None for all of a
            transcript, where there are no targets.

    Returns:
        Its arguments; none where both are None.

    Raises:
        InputError: if one is missing or unknown.
    """
    if pad_token is None and not sigma > 0:
        return {} if normalizer is None else {"normalize": transcript_normalizer(normalizer)}
    why = f"sigma is {sigma}" if sigma > 0 else "pad_token is given"
    for key, value in (("pad_token", pad_token), ("normalizer", normalizer)):
        if value is None:
            raise InputError(
                f"{key}: null, but {why}; give that of stage 1, or sigma=0 and pad_token=null"
            )
    return {"pad_token": pad_token, "normalize": transcript_normalizer(normalizer)}


def check_pad_token(name: str | int, token: int, llm_dir: str | Path) -> None:
    """Refuse a pad token that the LLM's embedding table has no row for.

    Args:
        name: as the config gives it.
        token: its id.
        llm_dir: Hugging Face folder of the LLM.

    Raises:
        InputError: if the table has fewer rows.
    """
    rows = read_hf_config(llm_dir)["vocab_size"]
    if token >= rows:
        raise InputError(
            f"pad_token: {name!r} is token {token}, but the table of {llm_dir} has {rows} rows; "
            "name another token"
        )


def check_text_only(dataset: SpeechDataset, key: str = "dataset") -> None:
    """Refuse samples with speech where no projector is there to hear them.

    Args:
        dataset: the data.
        key: config key of the data.

    Raises:
        InputError: naming the first such sample.
    """
    speech = next((s.id for s in dataset.samples if s.is_speech), None)
    if speech is not None:
        raise InputError(
            f"{key}: sample {speech} has speech, and this recipe trains on text; set "
            f"{key}.text_twins=true to take transcripts in its place, or {key}.tasks to mt and qa"
        )


def check_embedding_target(
    projector: nn.Module, dataset: SpeechDataset, blank: str | None = None
) -> int | None:
    """Refuse a warm-up towards embeddings whose CTC labels are no tokens of the LLM.

    Args:
        projector: the projector.
        dataset: training data.
        blank: text of the token that stands for CTC's blank. Default None: zero does.

    Returns:
        The blank's token, or None.

    Raises:
        InputError: naming the key to change.
    """
    if not isinstance(dataset.ctc, TokenLabels):
        raise InputError(
            "embedding_weight: the distance to embeddings needs the LLM's tokens as CTC labels; "
            "set dataset.ctc=tokens, or embedding_weight=0"
        )
    if projector.ctc_length(97) != projector.output_length(97):
        cure = "projector.out_stack=1 (and raise projector.stack)"
        if hasattr(projector, "ctc_block"):  # SpeechMapper's, which may shorten in any block
            cure = "projector.strides to 1 in the blocks behind projector.ctc_block"
        raise InputError(
            f"embedding_weight: needs a CTC vector for each speech vector; set {cure}, or "
            "embedding_weight=0"
        )
    if blank is None:
        return None
    labels = dataset.ctc.encode(str(blank))
    if len(labels) != 1:
        raise InputError(
            f"embedding_blank: {blank!r} is {len(labels)} tokens for this LLM; give text of one, "
            "or null"
        )
    return labels[0] - 1


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


def check_checkpoint_fits(
    path: str | Path | None,
    found: Mapping[str, Any],
    *,
    store: bool,
    projector: DictConfig | None = None,
) -> None:
    """Refuse a checkpoint of another LLM, other encoder frames or another kind of projector.

    Args:
        path: the checkpoint; None is nothing to refuse. A PEFT folder from elsewhere tells nothing
            of itself and is accepted.
        found: fingerprints of this run.
        store: whether its frames matter (they do not for LoRA trained on text).
        projector: component node of the projector that is to get the checkpoint's weights; None
            for none.

    Raises:
        InputError: naming what differs.
    """
    if path is None or is_peft_folder(path):
        return
    stage = read_stage(path)
    expected = stage["fingerprints"]
    if any(expected["llm"].get(k, v) != v for k, v in found["llm"].items() if k != "name"):
        raise InputError(
            f"{path}: trained with the LLM {expected['llm']['name']!r}, "
            f"this run uses {found['llm']['name']!r} (another model, or changed files); "
            "set llm_dir to the folder it was trained with"
        )
    if store and expected["store"] and found["store"]:
        check_fingerprint(
            expected["store"], found["store"], f"{path} against this run's feature store"
        )
    if projector is not None and stage["config"].get("projector") is not None:
        now = OmegaConf.to_container(projector, resolve=True)
        _check_projector_settings(path, stage["config"]["projector"], now)


def _check_projector_settings(
    path: str | Path, then: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    """Refuse another builder, or settings with which the weights would be another network.

    Many leave all shapes as they are, so that loading the weights would not notice.
    """
    keys = ["_component_"]
    if then["_component_"] == now["_component_"]:
        # A checkpoint may be older than a setting, which then has its default, or know of one
        # that is no more.
        parameters = inspect.signature(locate(now["_component_"], "projector")).parameters
        defaults = {k: p.default for k, p in parameters.items() if p.default is not p.empty}
        then, now = defaults | then, defaults | now
        # A CTC head may be left behind, or begin with this run.
        both_ctc = None not in (then.get("ctc_vocab_size"), now.get("ctc_vocab_size"))
        keys = [k for k in now if _shapes_output(k) and (both_ctc or k not in _OF_CTC_HEAD)]
    for key in keys:
        ours, theirs = _as_word(now[key]), _as_word(then.get(key))
        if _as_word(_one_of_equals(now[key])) != _as_word(_one_of_equals(then.get(key))):
            raise InputError(
                f"{path}: trained with projector.{key}={theirs}, this run has {ours}; "
                f"set projector.{key}={theirs}"
            )


def _shapes_output(key: str) -> bool:
    """Whether a projector that is trained gives other vectors under another value."""
    return "dropout" not in key and key != "output_scale"  # of the initial weights


def _one_of_equals(value: Any) -> Any:
    """Of a list for all blocks the one value that it may also be given as.

    Another number of blocks hides behind it at most, which loading the weights notices.
    """
    is_list = isinstance(value, (list, tuple)) and len(value) > 0
    return value[0] if is_list and all(v == value[0] for v in value) else value


def _as_word(value: Any) -> str:
    """A value as on the command line; a tuple, as a default may be, as a list."""
    return value if isinstance(value, str) else json.dumps(value, default=repr)


def check_kept(
    path: str | Path | None, kept: Mapping[str, Any] | None, *, key: str = "dataset.kept"
) -> None:
    """Refuse other speech vectors than those that a projector was trained to give the LLM.

    A projector that was trained without dropping pads may drop those that its stage 1 found.

    Args:
        path: the projector's checkpoint; None is nothing to refuse.
        kept: this run's, see :func:`kept_fingerprint`; None for all vectors.
        key: config key that names the file.

    Raises:
        InputError: saying what to set.
    """
    if path is None or is_peft_folder(path):
        return
    stage = read_stage(path)
    expected = stage["fingerprints"].get("kept")
    if kept is not None and stage["stage"] == "speechmapper":
        if kept["projector"] != projector_digest(path):
            raise InputError(
                f"{key}: made with another projector than that of {path}; run torchtune-speech "
                f"keep again with --checkpoint {path}"
            )
    elif kept is not None and expected is None and "stage_1" in stage["fingerprints"]:
        stage_1 = stage["fingerprints"]["stage_1"]  # which an older checkpoint does not tell
        if stage_1 is None or kept["projector"] != stage_1["projector"]:
            raise InputError(
                f"{key}: made with another projector than {path} began with; run torchtune-speech "
                "keep with its stage-1 run, or set it to null"
            )
    if expected is not None and expected != kept:
        now = "all speech vectors" if kept is None else "what another projector keeps"
        raise InputError(
            f"{key}: {path} was trained with pads dropped, and this run gives the LLM {now}; set "
            f"it to what `torchtune-speech keep` writes with the same stage-1 run"
        )


def check_stage_1(cfg: DictConfig, dataset: SpeechDataset, path: str | Path | None) -> None:
    """Refuse another pad token or normaliser than those that a projector learnt in stage 1.

    Args:
        cfg: configuration of recipe ``projector`` or ``multimodal_fuse``.
        dataset: training data.
        path: the projector's checkpoint; None for a fresh one.

    Raises:
        InputError: saying what to set.
    """
    name, normalizer = cfg.get("pad_token"), cfg.normalizer
    pad_token = None if name is None else resolve_token(name, dataset.chat)
    if pad_token is not None and dataset.kept is not None:
        theirs = dataset.kept.fingerprint["pad_token"]
        if pad_token != theirs:
            raise InputError(
                f"pad_token: {name!r} is token {pad_token}, but dataset.kept was made with {theirs}"
                f"; set pad_token={theirs}, or run torchtune-speech keep with a stage 1 of this pad"
            )
    stage_1 = stage_1_fingerprint(path, dataset.chat).get("stage_1")
    if stage_1 is None:
        return
    if pad_token not in (None, theirs := stage_1["pad_token"]):
        raise InputError(
            f"pad_token: {name!r} is token {pad_token}, but stage 1 of {path} learnt {theirs}; "
            f"set pad_token={theirs}"
        )
    hears = cfg.ctc_weight > 0 or cfg.get("ctc_only_steps", 0) > 0
    if normalizer is None and not hears:  # of no transcript is anything learnt
        return
    if (normalizer or "none") != (theirs := stage_1["normalizer"]):
        raise InputError(
            f"normalizer: {normalizer or 'null'}, but stage 1 of {path} learnt transcripts under "
            f"{theirs}; set normalizer={theirs}"
        )


def check_same_kept(dataset: SpeechDataset, eval_dataset: SpeechDataset) -> None:
    """Refuse dev speech whose pads are dropped in another way than those of the training data.

    Args:
        dataset: training data.
        eval_dataset: dev data.

    Raises:
        InputError: saying what to set.
    """
    ours, theirs = (d.kept and d.kept.fingerprint for d in (dataset, eval_dataset))
    if ours != theirs and any(sample.is_speech for sample in eval_dataset.samples):
        raise InputError(
            "eval_dataset.kept: drops pads in another way than dataset.kept; set both to files of "
            "`torchtune-speech keep` with the same stage-1 run, or both to null"
        )


def check_resume(
    path: str | Path, cfg: DictConfig, found: Mapping[str, Any], max_steps: int
) -> None:
    """Refuse to go on with other data or other steps than a run began with.

    Settings that may be changed on the way, such as learning rates, are told where they were.

    Args:
        path: checkpoint of the run.
        cfg: this configuration.
        found: fingerprints of this run.
        max_steps: steps of this run.

    Raises:
        InputError: naming what differs.
    """
    check_checkpoint_fits(path, found, store=True, projector=cfg.get("projector"))
    if read_stage(path)["fingerprints"].get("kept") != found.get("kept"):
        raise InputError(
            f"{path}: resume=true, but dataset.kept was another file or null; go on with what the "
            "run began with, or start a new one in another output_dir"
        )
    stage, now = read_stage(path), OmegaConf.to_container(cfg, resolve=True)
    then = stage["config"]
    cure = "go on with what the run began with, or start a new one in another output_dir"
    for key in (*_PLAN_KEYS, *_TAUGHT_KEYS):
        if then.get(key) != now.get(key):
            raise InputError(
                f"{path}: resume=true, but {key} was {then.get(key)!r} and is {now.get(key)!r}; "
                f"{cure}"
            )
    if stage["fingerprints"]["data"] != found["data"]:
        raise InputError(f"{path}: resume=true, but the data of the run was another; {cure}")
    if stage["fingerprints"].get("lengths", found["lengths"]) != found["lengths"]:
        raise InputError(
            f"{path}: resume=true, but the samples had other lengths in tokens (another "
            f"tokenizer, prompt templates, frame average or projector); {cure}"
        )
    if stage["fingerprints"].get("adapter", found["adapter"]) != found["adapter"]:
        raise InputError(
            f"{path}: resume=true, but adapter_checkpoint was another LoRA or null; {cure}"
        )
    if stage["step"] > max_steps:
        raise InputError(
            f"max_steps: {max_steps}, but {path} has done {stage['step']} steps; "
            "raise max_steps (or epochs), or start a new run in another output_dir"
        )
    old, new = _step_settings(then), _step_settings(now)
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            log_rank_zero(
                _log,
                f"resume=true: {key} was {old.get(key)!r} and is {new.get(key)!r} from here on",
                logging.WARNING,
            )


def _step_settings(node: Any, key: str = "") -> dict[str, Any]:
    """Dotted key to value of the settings of a config that change steps, but not the plan."""
    if isinstance(node, dict) and node:
        below = (
            _step_settings(value, f"{key}.{name}" if key else name) for name, value in node.items()
        )
        return {k: v for settings in below for k, v in settings.items()}
    return {key: node} if key.split(".")[0] in _STEP_KEYS or "dropout" in key else {}
