"""What a user would take instead: Hugging Face's Llama, PEFT's LoRA and right-padded batches.

Written as public speech-LLM toolkits do it: token embeddings and speech vectors are joined into
``inputs_embeds``, one sample a row, padded on the right, with labels of -100 where nothing is to be
learnt; attention is SDPA; the loss is Hugging Face's own.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

LORA_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class PeerSpeechLLM(nn.Module):
    """Llama with LoRA on all its matrices, and a projector.

    Args:
        llm: the Llama, frozen.
        projector: the same module as ours: packed frames to packed vectors.
        lora_rank: rank of the updates.
        lora_alpha: the update is scaled by alpha / rank.
    """

    def __init__(
        self, llm: LlamaForCausalLM, projector: nn.Module, lora_rank: int = 8, lora_alpha: int = 16
    ) -> None:
        super().__init__()
        llm.requires_grad_(False)
        settings = LoraConfig(r=lora_rank, lora_alpha=lora_alpha, target_modules=LORA_MODULES)
        self.llm = get_peft_model(llm, settings)
        self.projector = projector

    def forward(
        self,
        tokens_bs: Tensor,
        attention_mask_bs: Tensor,
        labels_bs: Tensor,
        frames_td: Tensor | None,
        frame_lengths_u: Tensor | None,
        speech_mask_bs: Tensor,
    ) -> Tensor:
        """Mean cross-entropy of the supervised tokens."""
        embeddings = self.llm.get_input_embeddings()(tokens_bs)
        if frames_td is not None:
            vectors = self.projector(frames_td, frame_lengths_u).to(embeddings.dtype)
            embeddings = embeddings.masked_scatter(speech_mask_bs[:, :, None], vectors)
        return self.llm(
            inputs_embeds=embeddings, attention_mask=attention_mask_bs, labels=labels_bs
        ).loss


def hf_llama(shape: Mapping[str, Any], device: str, dtype: torch.dtype) -> LlamaForCausalLM:
    """A Llama with random weights, built on the device.

    Args:
        shape: arguments of ``speech_llama3_1``.
        device: where to build it.
        dtype: of its weights.

    Returns:
        The model, with SDPA attention.
    """
    config = LlamaConfig(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["embed_dim"],
        intermediate_size=shape["intermediate_dim"],
        num_hidden_layers=shape["num_layers"],
        num_attention_heads=shape["num_heads"],
        num_key_value_heads=shape["num_kv_heads"],
        max_position_embeddings=max(shape["max_seq_len"], 8193),
        rms_norm_eps=shape["norm_eps"],
        tie_word_embeddings=False,
        attn_implementation="sdpa",
        use_cache=False,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": float(shape["rope_base"]),
            "factor": float(shape["scale_factor"]),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    )
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(default)


def peer_batch(items: Sequence[Mapping[str, Any]], placeholder_id: int) -> dict[str, Any]:
    """One sample a row, padded on the right.

    Args:
        items: as of ``SpeechDataset.item``.
        placeholder_id: token that stands for a speech vector.

    Returns:
        Arguments of :class:`PeerSpeechLLM`.
    """
    longest = max(len(item["tokens"]) for item in items)
    shape = (len(items), longest)
    tokens, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, -100)
    mask = torch.zeros(shape, dtype=torch.long)
    for row, item in enumerate(items):
        length = len(item["tokens"])
        tokens[row, :length] = torch.tensor(item["tokens"])
        # Hugging Face shifts labels itself: theirs stand at the token, ours before it.
        labels[row, 1:length] = torch.tensor(item["labels"][:-1])
        mask[row, :length] = 1
    frames = [f for item in items for f in item["frames"]]
    return {
        "tokens_bs": tokens,
        "attention_mask_bs": mask,
        "labels_bs": labels,
        "frames_td": torch.cat(frames).float() if frames else None,
        "frame_lengths_u": torch.tensor([len(f) for f in frames]) if frames else None,
        "speech_mask_bs": tokens == placeholder_id,
    }


def random_batches(count: int, batch_size: int, seed: int = 0) -> list[list[int]]:
    """Sample numbers of shuffled batches; the last, smaller one is left out."""
    order = random.Random(seed).sample(range(count), count)
    return [order[i : i + batch_size] for i in range(0, count - batch_size + 1, batch_size)]


def grouped_batches(lengths: Sequence[int], batch_size: int, seed: int = 0) -> list[list[int]]:
    """Sample numbers of length-grouped batches, as Hugging Face's ``group_by_length`` makes them.

    Shuffled, cut into groups of 50 batches, each sorted by length; the batches are shuffled again.

    Args:
        lengths: tokens of each sample.
        batch_size: samples of a batch.
        seed: of the shuffling.

    Returns:
        The batches; the last, smaller one is left out.
    """
    shuffle = random.Random(seed)
    order = shuffle.sample(range(len(lengths)), len(lengths))
    many = 50 * batch_size
    batches = []
    for start in range(0, len(order), many):
        group = sorted(order[start : start + many], key=lambda i: -lengths[i])
        batches += [
            group[i : i + batch_size] for i in range(0, len(group) - batch_size + 1, batch_size)
        ]
    shuffle.shuffle(batches)
    return batches
