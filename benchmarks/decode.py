"""Decoding speed beside Hugging Face's `generate`, on the same weights and prompts.

A Llama of 100 million parameters with random weights answers prompts as long as 2 to 20 seconds of
speech (16.7 vectors a second, and 40 tokens of instruction) with 64 tokens each. The two take turns
in one process; the medians are compared. In float32 the texts must be the same.

    python benchmarks/decode.py
"""

import tempfile
from collections.abc import Callable

import torch
from common import compute_dtype, parser, take_turns, write_section
from transformers import LlamaConfig, LlamaForCausalLM

from torchtune_speech.generation import Decoding, Prompt, generate
from torchtune_speech.models import load_hf_weights, speech_llama3_1_from_hf

NEW_TOKENS, VOCABULARY = 64, 32_000


def main() -> None:
    """Measure, print and write."""
    arguments = parser(__doc__)
    arguments.set_defaults(dtype="fp32")  # in which both must say the same
    arguments.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 16])
    options = arguments.parse_args()
    dtype = compute_dtype(options)
    with tempfile.TemporaryDirectory() as folder:
        theirs, ours = build_models(folder, options.device, dtype)
    table = {"tokens_per_s": {}, "hf_tokens_per_s": {}, "ratio_vs_hf": {}}
    for size in options.batch_sizes:
        prompts = make_prompts(size)
        ours_s, theirs_s = measure(
            lambda p=prompts: answer_ours(ours, p, dtype),
            lambda p=prompts: answer_hf(theirs, p),
            options.repeats,
            options.device,
            same=dtype == torch.float32,
        )
        tokens = size * NEW_TOKENS
        table["tokens_per_s"][str(size)] = round(tokens / ours_s, 1)
        table["hf_tokens_per_s"][str(size)] = round(tokens / theirs_s, 1)
        table["ratio_vs_hf"][str(size)] = round(theirs_s / ours_s, 2)
        print(
            f"batch {size:>3}: {tokens / ours_s:8.1f} tokens/s, Hugging Face "
            f"{tokens / theirs_s:8.1f}, ratio {theirs_s / ours_s:.2f}",
            flush=True,
        )
    table["parameters"] = sum(p.numel() for p in theirs.parameters())
    write_section(options, "decode", table)


def build_models(
    folder: str, device: str, dtype: torch.dtype
) -> tuple[LlamaForCausalLM, torch.nn.Module]:
    """The same random weights in both libraries."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.05,  # wide enough that a next token is not decided by rounding
        eos_token_id=None,  # nothing ends an answer early
        bos_token_id=0,
        pad_token_id=0,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    )
    theirs = LlamaForCausalLM(config).to(dtype).eval()
    theirs.save_pretrained(folder)
    torch.set_default_dtype(dtype)
    ours = speech_llama3_1_from_hf(folder).eval()
    torch.set_default_dtype(torch.float32)
    ours.load_state_dict(load_hf_weights(folder), strict=False)
    return theirs.to(device), ours.to(device)


def make_prompts(count: int) -> list[list[int]]:
    """Prompts of mixed length, as of 2 to 20 seconds of speech."""
    generator = torch.Generator().manual_seed(count)
    seconds = torch.linspace(2, 20, count) if count > 1 else torch.tensor([11.0])
    seconds = seconds[torch.randperm(count, generator=generator)]
    return [
        torch.randint(1, VOCABULARY, (40 + int(s * 50 / 3),), generator=generator).tolist()
        for s in seconds.tolist()
    ]


def answer_ours(
    model: torch.nn.Module, prompts: list[list[int]], dtype: torch.dtype
) -> list[list[int]]:
    """Token ids of the answers."""
    answers = generate(
        model,
        [Prompt(p) for p in prompts],
        Decoding(NEW_TOKENS),
        stop_ids=[],
        placeholder_id=0,
        cache_dtype=dtype,
    )
    return [a.tokens for a in answers]


@torch.no_grad()
def answer_hf(model: LlamaForCausalLM, prompts: list[list[int]]) -> list[list[int]]:
    """Token ids of the answers; padded on the left, as Hugging Face wants it."""
    length = max(map(len, prompts))
    tokens = torch.tensor([[0] * (length - len(p)) + p for p in prompts], device=model.device)
    out = model.generate(
        tokens,
        attention_mask=(tokens > 0).long(),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        suppress_tokens=[0],  # the padding, which ours never says either
    )
    return out[:, length:].tolist()


def measure(
    ours: Callable[[], list[list[int]]],
    theirs: Callable[[], list[list[int]]],
    repeats: int,
    device: str,
    same: bool,
) -> tuple[float, float]:
    """Median seconds of each."""
    first, second = ours(), theirs()
    if same and first != second:
        differing = sum(a != b for a, b in zip(first, second, strict=True))
        raise SystemExit(f"{differing} of {len(first)} answers differ: nothing to compare")
    medians = take_turns({"ours": ours, "theirs": theirs}, repeats, device, warmup=0)
    return medians["ours"], medians["theirs"]


if __name__ == "__main__":
    main()
