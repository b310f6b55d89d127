"""A tiny random Qwen3 with a small tokenizer, in the files of Qwen3's Hugging Face folders."""

import json
from pathlib import Path

import torch
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

# Token and whether it is special, in the order of the real ones (151643 and on).
ADDED = [
    *(("<|endoftext|>", True), ("<|im_start|>", True), ("<|im_end|>", True)),
    *(("<|vision_start|>", True), ("<|vision_end|>", True), ("<|vision_pad|>", True)),
    *(("<tool_call>", False), ("</tool_call>", False), ("<think>", False), ("</think>", False)),
]
# What the templates of Qwen3-4B-Instruct-2507 and of the first Qwen3 models come to where no tools
# are offered and no thoughts are in the messages.
TEMPLATE_2507 = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TEMPLATE_THINKING = (
    "{% set thoughts = '<think>\\n\\n</think>\\n\\n' %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' }}"
    "{% if message.role == 'assistant' and loop.last %}{{ thoughts }}{% endif %}"
    "{{ message.content + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ thoughts }}{% endif %}"
    "{% endif %}"
)
TEXTS = [
    "user assistant system Transcribe the English content. Who? Where?",
    "The doctor waits in the garden. The queen works. The nurse sings every year.",
    "Übersetze den englischen Inhalt nach Deutsch. 将英文内容翻译成中文。",
]


def write_qwen3_tokenizer(folder: Path, template: str = TEMPLATE_2507) -> int:
    """``tokenizer.json``, ``vocab.json``, ``merges.txt``, ``tokenizer_config.json``; their size."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.model.save(str(folder))  # vocab.json and merges.txt
    first = tokenizer.get_vocab_size()
    added = [AddedToken(name, special=special, normalized=False) for name, special in ADDED]
    tokenizer.add_tokens(added)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(first + i): {"content": name, "special": special, "normalized": False}
            | dict.fromkeys(("lstrip", "rstrip", "single_word"), False)
            for i, (name, special) in enumerate(ADDED)
        },
        "bos_token": None,
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 262144,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer.get_vocab_size()


def make_qwen3(folder: Path, *, tie: bool = False, seed: int = 0, dim: int = 32) -> Path:
    """A random Qwen3 in float32, its heads wider than ``dim / heads``, its norms not all ones.

    The embedding table has more rows than there are tokens, as the real ones have.
    """
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=write_qwen3_tokenizer(folder) + 20,
            hidden_size=dim,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=12,
            max_position_embeddings=512,
            tie_word_embeddings=tie,
            rope_parameters={"rope_type": "default", "rope_theta": 5_000_000.0},
            initializer_range=0.3,
        )
    )
    for name, p in model.named_parameters():
        if "norm" in name:  # with scales of one, nobody sees whether norm or rotation comes first
            torch.nn.init.uniform_(p, 0.3, 2.0)
    model.save_pretrained(folder)
    return folder
