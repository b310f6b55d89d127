"""Speech encoder of SeamlessM4T-v2, read from Hugging Face files without the rest of the model."""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from torchtune_speech.encoders._conformer import Conformer, FeatureProjection
from torchtune_speech.encoders._filter_bank import FilterBankEncoder
from torchtune_speech.errors import InputError

PREFIX = "speech_encoder."
WEIGHTS_FILE = "model.safetensors"
WEIGHTS_INDEX_FILE = "model.safetensors.index.json"
KERNEL_MULTIPLE = 8


class SeamlessM4TV2Encoder(nn.Module):
    """Frames of a layer of SeamlessM4T-v2's speech encoder, before its length adaptor.

    Waveforms of any lengths are sorted, padded, and encoded under a mask, up to
    ``max_batch_seconds`` at once; each gets the frames that it would get alone.

    Barrault et al. 2023, https://arxiv.org/abs/2312.05187

    Args:
        feature_projection: from filter bank to the encoder's width.
        encoder: the Conformer stack, ending with the wanted layer (and the final norm or none).
        fingerprint: what :meth:`fingerprint` returns.
        max_batch_seconds: seconds of audio in a batch at most, padding included. A longer
            waveform is encoded alone. None: all that a call gives.
        compile: compile the layers, all but their attention.
    """

    def __init__(
        self,
        feature_projection: nn.Module,
        encoder: nn.Module,
        fingerprint: dict[str, Any],
        max_batch_seconds: float | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.feature_projection = feature_projection
        self.encoder = encoder
        device = next(encoder.parameters()).device
        self.filter_bank = FilterBankEncoder(device=device)
        self.sampling_rate = self.filter_bank.sampling_rate
        self.dim: int = fingerprint["dim"]
        self.frames_per_second: float = fingerprint["frames_per_second"]
        self.max_batch_samples = (max_batch_seconds or math.inf) * self.sampling_rate
        self._fingerprint = fingerprint
        self.eval().requires_grad_(False)
        self.compiled = compile
        if compile:
            for layer in encoder.layers:
                # Dynamic, so that batches of other sizes run the same program.
                layer.compile(dynamic=True)

    def fingerprint(self) -> dict[str, Any]:
        """What decides the values of the frames."""
        return dict(self._fingerprint)

    @torch.no_grad()
    def forward(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Encode waveforms.

        Args:
            waveforms: 1-D float tensors at 16 kHz, full scale is 1.0.

        Returns:
            One tensor [frames, dim] per waveform, in the same order and in the encoder's dtype,
            with as many frames as :class:`FilterBankEncoder` gives.

        Raises:
            InputError: if a waveform is not 1-D or has no samples.
        """
        frames: dict[int, Tensor] = {}
        batch: list[int] = []
        for number in sorted(range(len(waveforms)), key=lambda n: -len(waveforms[n])):
            longest = len(waveforms[batch[0]]) if batch else 0
            if (len(batch) + 1) * longest > self.max_batch_samples:
                frames |= self._encode(waveforms, batch)
                batch = []
            batch.append(number)
        if batch:
            frames |= self._encode(waveforms, batch)
        return [frames[number] for number in range(len(waveforms))]

    def _encode(self, waveforms: Sequence[Tensor], batch: list[int]) -> dict[int, Tensor]:
        features = self.filter_bank([waveforms[number] for number in batch])
        lengths = torch.tensor([len(f) for f in features], device=features[0].device)
        padded = pad_sequence(features, batch_first=True)
        if padded.is_cuda:  # what the attention kernel would otherwise copy its bias for
            padded = nn.functional.pad(padded, (0, 0, 0, -padded.shape[1] % KERNEL_MULTIPLE))
        # No mask is faster; but one program for all batches has to have it.
        masked = self.compiled or any(len(f) < padded.shape[1] for f in features)
        hidden = self.encoder(self.feature_projection(padded), lengths if masked else None)
        # Copies, so that one long utterance does not keep the whole batch in memory.
        return {n: h[: len(f)].clone() for n, h, f in zip(batch, hidden, features, strict=True)}


def seamless_m4t_v2_encoder(
    path: str | os.PathLike[str],
    layer: int = 24,
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str = "cpu",
    max_batch_seconds: float | None = None,
    compile: bool = False,
) -> SeamlessM4TV2Encoder:
    """Load the speech encoder of SeamlessM4T-v2; text decoder, vocoder and adaptor stay on disk.

    Reads ``config.json`` and, of the safetensors files, only the tensors of the layers that are
    used. From the Hub only the shards that hold such tensors are downloaded.

    Args:
        path: folder in Hugging Face format, or an id on the Hub.
        layer: the frames are the output of this layer, counted from 1. The last one (24) is taken
            after the stack's final norm, an earlier one is the raw output of its layer.
        dtype: of the computation and of the frames: a torch dtype, "fp32" or "bf16".
        device: where to compute. "meta" reads no weights, for planning; where there is no such
            model it takes the shape of the published large one.
        max_batch_seconds: seconds of audio encoded at once, padding included. Default: whatever a
            call gives, as the recipe makes batches of ``batch_seconds`` itself.
        compile: compile the layers with torch.compile, once for all shapes of batches. It takes a
            minute at the start and changes frames by rounding only.

    Returns:
        The encoder.

    Raises:
        InputError: if the path is no SeamlessM4T-v2 with safetensors, or has no such layer.

    Example:
        >>> encoder = seamless_m4t_v2_encoder("facebook/seamless-m4t-v2-large", layer=24)
        >>> encoder([load_audio("talk.wav")])[0].shape
        torch.Size([149, 1024])
    """
    path = os.fspath(path)
    device = torch.device(device)
    config = _load_config(path, large_if_absent=device.type == "meta")
    last = config.speech_encoder_layers
    if not 1 <= layer <= last:
        raise InputError(f"{path}: layer is {layer}; the speech encoder has layers 1 to {last}")
    with torch.device("meta"):
        modules = nn.ModuleDict(_build(config, layer))
    if layer < last:
        modules["encoder"].layer_norm = nn.Identity()
    if device.type == "meta":
        digest = None
        modules.to(_dtype(dtype))
    else:
        digest = _load_weights(path, modules, _dtype(dtype), device)
    fingerprint = {
        "encoder": "seamless_m4t_v2",
        "id": Path(path).resolve().name if Path(path).is_dir() else path,
        "weights": digest,
        "layer": layer,
        "after_final_norm": layer == last,
        "dim": config.hidden_size,
        "frames_per_second": 50.0,
    }
    return SeamlessM4TV2Encoder(
        modules["feature_projection"],
        modules["encoder"],
        fingerprint,
        max_batch_seconds,
        compile and device.type != "meta",
    )


def _build(config: Any, num_layers: int) -> dict[str, nn.Module]:
    """Projection and stack as a Hugging Face configuration has them."""
    from transformers.activations import ACT2FN

    projection = FeatureProjection(
        config.feature_projection_input_dim, config.hidden_size, config.layer_norm_eps
    )
    encoder = Conformer(
        num_layers=num_layers,
        dim=config.hidden_size,
        num_heads=config.speech_encoder_attention_heads,
        ffn_dim=config.speech_encoder_intermediate_size,
        kernel_size=config.conv_depthwise_kernel_size,
        left_max=config.left_max_position_embeddings,
        right_max=config.right_max_position_embeddings,
        activation=ACT2FN[config.speech_encoder_hidden_act],
        norm_eps=config.layer_norm_eps,
        chunk_size=config.speech_encoder_chunk_size,
        left_chunks=config.speech_encoder_left_chunk_num,
    )
    return {"feature_projection": projection, "encoder": encoder}


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    names = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in names:
        raise InputError(f"dtype: {dtype!r} is not known; use one of {', '.join(names)}")
    return names[dtype]


def _file(path: str, name: str) -> Path | None:
    """A file of a model folder or of a model on the Hub; None if the model has no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    if Path(path).is_dir():
        file = Path(path) / name
        return file if file.is_file() else None
    try:
        return Path(hf_hub_download(path, name))
    except LocalEntryNotFoundError as error:  # not in the cache, and the Hub is out of reach
        raise _no_model(path) from error
    except EntryNotFoundError:
        return None
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        raise _no_model(path) from error


def _no_model(path: str) -> InputError:
    return InputError(
        f"{path}: no such folder, nor a model that can be downloaded from the Hugging Face Hub; "
        "download facebook/seamless-m4t-v2-large and give its folder"
    )


def _load_config(path: str, large_if_absent: bool) -> Any:
    """Configuration of the model, checked to be one that this encoder can read."""
    from transformers import SeamlessM4Tv2Config

    try:
        file = _file(path, "config.json")
    except InputError:
        if large_if_absent:
            return SeamlessM4Tv2Config()
        raise
    if file is None:
        raise InputError(f"{path}: no config.json in it; give a folder in Hugging Face format")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        model_type = values.get("model_type")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{file}: not readable ({error}); download it again") from error
    if model_type != "seamless_m4t_v2":
        raise InputError(
            f"{file}: model_type is {model_type!r}; this encoder reads seamless_m4t_v2"
        )
    config = SeamlessM4Tv2Config.from_dict(values)
    if config.feature_projection_input_dim != 160:
        raise InputError(
            f"{file}: feature_projection_input_dim is {config.feature_projection_input_dim}; the "
            "filter bank gives 160"
        )
    if config.position_embeddings_type != "relative_key":
        raise InputError(
            f"{file}: position_embeddings_type is {config.position_embeddings_type!r}; this "
            "encoder computes relative_key"
        )
    return config


def _load_weights(path: str, modules: nn.Module, dtype: torch.dtype, device: torch.device) -> str:
    """Fill modules on the meta device with the weights of a model; return their digest."""
    names = sorted(modules.state_dict())
    files = _files_of_tensors(path, names)
    digest = hashlib.sha256()
    weights = {}
    opened: dict[Path, Any] = {}
    try:
        for name in names:
            file = files[name]
            if file not in opened:
                opened[file] = safe_open(file, framework="pt")
            tensor = opened[file].get_tensor(PREFIX + name)
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
            weights[name] = tensor.to(device, dtype, copy=True)
        modules.load_state_dict(weights, assign=True)
    except (SafetensorError, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"{path}: {PREFIX}* not readable ({reason}); download it again") from error
    return digest.hexdigest()


def _files_of_tensors(path: str, names: list[str]) -> dict[str, Path]:
    """The safetensors file of each tensor; only files that are needed are looked for."""
    index = _file(path, WEIGHTS_INDEX_FILE)
    if index is not None:
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            shards = {name: weight_map[PREFIX + name] for name in names}
        except (ValueError, KeyError) as error:
            raise InputError(f"{index}: {error} is not in it; download it again") from error
    else:
        shards = dict.fromkeys(names, WEIGHTS_FILE)
    files = {shard: _file(path, shard) for shard in set(shards.values())}
    missing = sorted(shard for shard, file in files.items() if file is None)
    if missing:
        raise InputError(
            f"{path}: {missing[0]} is missing; give a folder with the weights as safetensors"
        )
    return {name: files[shard] for name, shard in shards.items() if files[shard] is not None}
