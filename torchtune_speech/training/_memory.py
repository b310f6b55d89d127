"""Peak memory of a training step, predicted by running it on tensors without content."""

import dataclasses
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchtune.utils import get_logger, log_rank_zero

from torchtune_speech import config
from torchtune_speech.data import IGNORE_INDEX, Batch, TranscriptBatch
from torchtune_speech.models import (
    ProjectorWithTable,
    SpeechLLM,
    is_quantized,
    quantize_frozen,
    weight_bytes,
)
from torchtune_speech.training._build import meta_speech_llm, recompute_layers
from torchtune_speech.training._objective import autocast, batch_loss
from torchtune_speech.training._optim import build_optimizer, trainable_groups
from torchtune_speech.training._process import Process, compute_dtype
from torchtune_speech.training._run import clip_gradients

FROZEN, TRAINED, GRADIENTS = "frozen weights", "trained weights", "gradients"
STATE, ACTIVATIONS = "optimizer state", "activations, temporaries"
GATHERED = "gathered for use"

_SAMPLE_TOKENS = 250  # about ten seconds of speech with its prompt and its answer
_SUPERVISED = 0.2  # share of them that is supervised; in ASR batches 10 to 20 %
_RESERVE = 0.1  # share of a device's memory for kernels, the allocator and CUDA itself
_FEW_LAYERS = (3, 4)  # with a first, a last and one or two between
# Tensors of a batch whose content shapes others: they stay real.
_SHAPE_TENSORS = ("frame_lengths", "ctc_target_lengths", "ctc_targets", "document_ids")

Parts = dict[str, int]

_log = get_logger("INFO")


@dataclasses.dataclass(frozen=True, slots=True)
class StepMemory:
    """Bytes that a training step needs in one process, at its fullest moment.

    Args:
        parts: bytes by part, such as ``gradients``.
        phase: when that moment is: ``forward pass``, ``backward pass`` or ``optimizer's step``.
    """

    parts: Mapping[str, int]
    phase: str

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())


def predict_memory(
    cfg: DictConfig,
    trained: Sequence[str],
    *,
    activation_checkpointing: bool,
    world_size: int = 1,
    batch: Batch | None = None,
    all_layers: bool = False,
) -> StepMemory:
    """Peak memory of a training step, from the configuration alone.

    The step itself (loss, backward pass, clipping, optimizer) runs on fake tensors, which have
    shape and dtype and no content, and every storage that comes and goes is counted. It is a later
    step than the first: the optimizer has its state, and where batches accumulate the gradients
    are there. Three and four layers are traced, and the line through them is drawn on to all.

    The trace has the kernels of a CPU. For ``device: cuda`` its attention is causal and without a
    mask, which keeps for the backward pass what flex attention keeps: queries, keys, values,
    output and a number for each row. Elsewhere it is what a CPU computes. Not counted are the work
    space of kernels, what the allocator rounds up or cannot use, the CUDA context, what compiled
    layers keep otherwise, and evaluations.

    Of several processes, each holds its share of weights, gradients and state; two layers at a
    time, and what is in no layer (embeddings, output layer, projector), are gathered for use.
    Quantised weights, and with ``shard_llm: false`` all frozen ones, are whole in each.

    Args:
        cfg: configuration of a training recipe.
        trained: parameter groups that the recipe trains.
        activation_checkpointing: whether layers are recomputed.
        world_size: number of processes.
        batch: what one process computes at a time, on the CPU; :func:`planned_batch` by default.
        all_layers: trace all layers. Default False: a second instead of some ten for 32 layers.

    Returns:
        The prediction.
    """
    whole = _meta_model(cfg, cfg.get("quantize"))
    count = len(whole.decoder.layers)
    if batch is None:
        batch = planned_batch(cfg, whole.projector, world_size)

    def peaks(num_layers: int) -> dict[str, Parts]:
        model = keep_layers(_meta_model(cfg), num_layers)
        if activation_checkpointing:
            recompute_layers(model)
        return trace_step(cfg, model, trained, batch, _llm_loss)

    if all_layers or count <= max(_FEW_LAYERS):
        found = peaks(count)
    else:
        few, more = (peaks(n) for n in _FEW_LAYERS)
        found = {
            phase: {
                part: size + (more[phase][part] - size) * (count - _FEW_LAYERS[0])
                for part, size in few[phase].items()
            }
            for phase in few
        }
    phase = max(found, key=lambda name: sum(found[name].values()))
    trainable_groups(whole, *trained)
    shard_llm = cfg.get("shard_llm", True)
    return StepMemory(_shared(found[phase], whole, world_size, shard_llm), phase)


def planned_batch(cfg: DictConfig, projector: nn.Module | None, world_size: int = 1) -> Batch:
    """A full batch of the shape that a recipe's configuration gives, of typical samples.

    A sample has 250 positions, about ten seconds: a fifth supervised, the others speech (or text,
    without a projector), and CTC labels, where they are wanted, for a quarter of its vectors.

    Args:
        cfg: configuration of a training recipe.
        projector: the projector, may be on the meta device; None for text.
        world_size: number of processes.

    Returns:
        The rows that one process computes at a time, full, on the CPU. Tokens are zeros.
    """
    rows = rows_at_a_time(cfg, world_size)
    length = min(_SAMPLE_TOKENS, cfg.max_seq_len)
    per_row = cfg.max_seq_len // length
    length = cfg.max_seq_len // per_row  # so that the row is full
    position_s = torch.arange(cfg.max_seq_len)
    in_sample = (position_s % length).expand(rows, -1)
    document = (position_s // length).clamp(max=per_row - 1).expand(rows, -1)
    spoken = round(length * (1 - _SUPERVISED))
    is_sample = position_s < per_row * length
    supervised = (in_sample >= spoken) & is_sample
    batch = Batch(
        tokens=torch.zeros(rows, cfg.max_seq_len, dtype=torch.long),
        labels=torch.where(supervised, 0, IGNORE_INDEX),
        select=supervised.flatten().nonzero().flatten(),
        input_pos=in_sample.contiguous(),
        document_ids=document + 1,
        frames=None,
        frame_lengths=None,
        speech_index=None,
        keep_index=None,
        ctc_targets=None,
        ctc_target_lengths=None,
        target_tokens=None,
        ids=[],
    )
    if projector is not None:
        frames = _frames_of(projector, spoken)
        utterances = rows * per_row
        vectors = int(projector.output_length(frames))
        labels = int(projector.ctc_length(frames)) // 4
        is_speech = (in_sample < vectors) & is_sample
        batch |= {
            "frames": torch.zeros(utterances * frames, projector.in_dim),
            "frame_lengths": torch.full((utterances,), frames),
            "speech_index": is_speech.flatten().nonzero().flatten(),
            "ctc_targets": (torch.arange(utterances * labels) % 2) + 1,
            "ctc_target_lengths": torch.full((utterances,), labels),
        }
        if cfg.get("sigma", 0) > 0:
            batch["target_tokens"] = torch.zeros_like(batch["speech_index"])
    return batch


def rows_at_a_time(cfg: DictConfig, world_size: int = 1) -> int:
    """Rows of a full batch of one process.

    Args:
        cfg: configuration of a training recipe.
        world_size: number of processes.

    Returns:
        How many; the last batch of a step may have fewer.
    """
    return -(-cfg.rows_per_step // (cfg.gradient_accumulation_steps * world_size))


def _frames_of(projector: nn.Module, vectors: int) -> int:
    """Most frames that give no more than so many speech vectors, at least one."""
    frames = 1
    while projector.output_length(2 * frames) <= vectors:
        frames *= 2
    for step in (2**i for i in reversed(range(frames.bit_length()))):
        if projector.output_length(frames + step) <= vectors:
            frames += step
    return frames


def resolve_activation_checkpointing(
    wanted: bool | str, cfg: DictConfig, trained: Sequence[str], process: Process
) -> bool:
    """Whether layers are recomputed; ``auto`` recomputes them where they could not be kept.

    Args:
        wanted: True, False or ``auto``.
        cfg: configuration of a training recipe.
        trained: parameter groups that the recipe trains.
        process: this process. On a CPU ``auto`` means false.

    Returns:
        True to recompute. With ``auto`` the log says why.
    """
    if wanted != "auto":
        return wanted
    if process.device.type != "cuda":
        log_rank_zero(_log, "activation_checkpointing: auto keeps the layers, as always on a CPU")
        return False
    kept = predict_memory(
        cfg, trained, activation_checkpointing=False, world_size=process.world_size
    )
    have = torch.cuda.get_device_properties(process.device).total_memory
    recompute = kept.total > (1 - _RESERVE) * have
    log_rank_zero(
        _log,
        f"activation_checkpointing: auto {'recomputes' if recompute else 'keeps'} the layers; kept,"
        f" a step needs {kept.total / 2**30:.1f} GiB, the device has {have / 2**30:.1f} GiB, of "
        f"which {_RESERVE:.0%} stay free",
    )
    return recompute


def _meta_model(cfg: DictConfig, quantize: str | None = None) -> SpeechLLM:
    with torch.device("meta"):
        projector = config.instantiate(cfg.get("projector"))
    return meta_speech_llm(cfg.model, projector, compute_dtype(cfg.dtype), quantize)


def keep_layers(model: SpeechLLM, count: int) -> SpeechLLM:
    """Take layers out of the decoder, from the middle.

    Args:
        model: the model.
        count: layers to keep, the first ones and the last.

    Returns:
        The same model.
    """
    *layers, last = model.decoder.layers
    model.decoder.layers = nn.ModuleList([*layers[: count - 1], last])
    return model


class _WithoutMask(nn.Module):
    """The model with causal attention in place of the mask that is given."""

    def __init__(self, model: SpeechLLM) -> None:
        super().__init__()
        self.model, self.projector = model, model.projector

    def forward(self, tokens: Tensor, *, mask: Any, **others: Any) -> Any:
        return self.model(tokens, mask=None, **others)


class _Ledger(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, by part, and keeps each phase's peak.

    A storage leaves the count when it is freed: a weak reference tells. What an operation brings
    forth is an activation or temporary, unless it is said to be another part.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now: Parts = dict.fromkeys((FROZEN, TRAINED, GRADIENTS, STATE, ACTIVATIONS), 0)
        self.peaks: dict[str, Parts] = {}
        self._alive: dict[int, tuple[weakref.ref, str, int]] = {}
        self._phase = ""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 1.0  # an optimizer that asks for a number of its state
        if any(hasattr(kind, "__tensor_flatten__") for kind in types):
            return NotImplemented  # a quantised weight: what it does inside will come by here
        if func is torch.ops.aten._ctc_loss.Tensor:
            result = _ctc_loss(*args)
        else:
            result = func(*args, **kwargs or {})
        if func.namespace != "prim":
            for tensor in tree_leaves(result):
                if isinstance(tensor, Tensor):
                    self.count(tensor, ACTIVATIONS, known_too=False)
        return result

    def count(self, tensor: Tensor, part: str, known_too: bool = True) -> None:
        """Count a tensor's storage as a part; with ``known_too`` also if it was another before."""
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._alive:
            if not known_too:
                return
            _, before, size = self._alive[key]
            self.now[before] -= size
            self._alive[key] = (self._alive[key][0], part, size)
        else:
            size = storage.nbytes()
            self._alive[key] = (weakref.ref(storage, lambda _: self._free(key)), part, size)
        self.now[part] += size
        self._note()

    def _free(self, key: int) -> None:
        _, part, size = self._alive.pop(key)
        self.now[part] -= size

    def _note(self) -> None:
        peak = self.peaks.get(self._phase)
        if self._phase and (peak is None or sum(self.now.values()) > sum(peak.values())):
            self.peaks[self._phase] = dict(self.now)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Operations within belong to this phase."""
        self._phase = name
        self._note()
        with self:
            yield
        self._phase = ""


def _ctc_loss(
    log_probs_tuv: Tensor, targets: Tensor, lengths: Tensor, target_lengths_u: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    """What torch's operation gives, which has no fake version: losses and forward variables."""
    steps, utterances, _ = log_probs_tuv.shape
    states = 2 * int(target_lengths_u.max()) + 1
    return log_probs_tuv.new_empty(utterances), log_probs_tuv.new_empty(utterances, steps, states)


def trace_step(
    cfg: DictConfig,
    model: SpeechLLM | ProjectorWithTable,
    trained: Sequence[str],
    batch: Batch | TranscriptBatch,
    loss: Callable[[DictConfig, nn.Module, Any], Tensor],
) -> dict[str, Parts]:
    """Peak memory of each phase of a step on fake tensors.

    Args:
        cfg: configuration of a training recipe.
        model: on the meta device; it is made fake.
        trained: parameter groups that the recipe trains.
        batch: what one process computes at a time, on the CPU.
        loss: ``(cfg, model, batch) -> loss``, the forward pass.

    Returns:
        Phase to part to bytes.
    """
    fake, ledger = FakeTensorMode(allow_non_fake_inputs=True), _Ledger()
    with fake:
        model.to_empty(device="cpu").train()
        if cfg.get("quantize") is not None:
            quantize_frozen(model, cfg.quantize)
    for module in model.modules():
        if hasattr(module, "rope_init"):
            module.rope_init()
    groups = trainable_groups(model, *trained)
    parameters = [p for group in groups.values() for p in group.values()]
    optimizer = _optimizer_with_state(cfg, groups, parameters)
    batch = {
        k: fake.from_tensor(v) if isinstance(v, Tensor) and k not in _SHAPE_TENSORS else v
        for k, v in batch.items()
    }
    for p in model.parameters():
        for tensor in _plain_tensors(p):
            ledger.count(tensor, TRAINED if p.requires_grad else FROZEN)
    for tensor in tree_leaves([list(state.values()) for state in optimizer.state.values()]):
        if isinstance(tensor, Tensor):
            ledger.count(tensor, STATE)
    for tensor in tree_leaves([batch, *model.buffers()]):
        if isinstance(tensor, Tensor):
            ledger.count(tensor, ACTIVATIONS)
    for p in parameters:
        if cfg.gradient_accumulation_steps > 1:
            p.grad = torch.empty_like(p)
            ledger.count(p.grad, GRADIENTS)
        p.register_post_accumulate_grad_hook(lambda p: ledger.count(p.grad, GRADIENTS))

    with warnings.catch_warnings():
        # Of a norm's weight in bf16; the run itself says so too.
        warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")
        with ledger.phase("forward pass"), autocast(torch.device("cpu"), _dtype(cfg)):
            total = loss(cfg, model, batch)
        with ledger.phase("backward pass"):
            total.backward()
        with ledger.phase("optimizer's step"):
            clip_gradients(groups, cfg.clip_grad_norm)
            optimizer.step()
    return ledger.peaks


def _llm_loss(cfg: DictConfig, model: SpeechLLM, batch: Batch) -> Tensor:
    """Forward pass of the recipes that run the LLM."""
    ctc_weight, sigma = cfg.get("ctc_weight", 0), cfg.get("sigma", 0)
    traced = _WithoutMask(model) if cfg.device == "cuda" else model
    sums = batch_loss(traced, batch, with_ctc=ctc_weight > 0, with_error=sigma > 0)
    weights = (1 - sigma, ctc_weight, sigma)
    return sum(w * s for w, s in zip(weights, sums, strict=True) if s is not None)


def _dtype(cfg: DictConfig) -> torch.dtype:
    return compute_dtype(cfg.dtype, scaled_loss=True)


def _plain_tensors(weight: Tensor) -> list[Tensor]:
    """The tensor, or those that a quantised weight consists of."""
    if not is_quantized(weight):
        return [weight]
    return [getattr(weight, name) for name in weight.__tensor_flatten__()[0]]


def _optimizer_with_state(
    cfg: DictConfig, groups: Mapping[str, Mapping[str, nn.Parameter]], parameters: list[Tensor]
) -> torch.optim.Optimizer:
    """The optimizer after a first step."""
    optimizer = build_optimizer(cfg.optimizer, groups)
    for group in optimizer.param_groups:
        if cfg.device == "cuda" and "foreach" in group and not group.get("fused"):
            # What torch itself takes on GPUs where neither was asked for.
            group["foreach"] = True if group["foreach"] is None else group["foreach"]
    for p in parameters:
        p.grad = torch.empty_like(p)
    with _Ledger():  # which answers it where it asks for numbers
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return optimizer


def _shared(parts: Parts, model: SpeechLLM, world_size: int, shard_llm: bool) -> Parts:
    """What one of several processes holds of it, and what it gathers."""
    if world_size == 1:
        return parts

    def is_split(p: Tensor) -> bool:
        return not is_quantized(p) and (shard_llm or p.requires_grad)

    def split_bytes(module: nn.Module) -> int:
        return sum(p.nbytes for p in module.parameters() if is_split(p))

    layers = [split_bytes(layer) for layer in model.decoder.layers]
    outside = split_bytes(model) - sum(layers)
    gradients = sum(p.nbytes for p in _projector_parameters(model) if p.requires_grad)
    shared = {
        part: size if part == ACTIVATIONS else -(-size // world_size)
        for part, size in parts.items()
    }
    whole = sum(weight_bytes(p) for p in model.parameters() if not is_split(p))
    shared[FROZEN] = whole + -(-(parts[FROZEN] - whole) // world_size)
    return shared | {GATHERED: 2 * max(layers) + outside + gradients}


def _projector_parameters(model: SpeechLLM) -> list[Tensor]:
    return [] if model.projector is None else list(model.projector.parameters())
