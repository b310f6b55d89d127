"""A small tokenizer in the files of Llama-3's: `tokenizer.model`, `tokenizer.json` and its config.

Byte-pair encoding in which every word of the nano world and of the fixed prompts is one token.
`tokenizer.model` has tiktoken's lines as Llama-3's has, for torchtune; `tokenizer.json` gives
transformers the same ids, and torchtune the special tokens (`special_tokens_path`).
"""

import base64
import os
import random
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torchtune.models.llama3._tokenizer import CL100K_PATTERN, SPECIAL_TOKENS

from torchtune_speech.data import PromptTemplates
from torchtune_speech.files import atomic_write, write_json
from torchtune_speech.nano import _lexicon
from torchtune_speech.nano._grammar import (
    LANGUAGES,
    UNANSWERABLE,
    capitalize,
    draw_question,
    draw_sentence,
)
from torchtune_speech.nano._lm_text import lm_rows

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ bos_token if loop.first else '' }}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] | trim }}{{ '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)
"""Llama-3's, without the system turn on dates that 3.1 puts in front."""

_STARTING_TABLES = (_lexicon.SUBJECTS, _lexicon.NUMBERS, _lexicon.PLACES, _lexicon.TIMES)
# Chinese runs together, so its words have to be given; those of the tables are added.
_CHINESE_WORDS = (
    "， 谁 在哪里 什么时候 什么 多少 没有 将 英文 内容 翻译成 中文 "
    "根据 所给的 简要 回答 以下 问题 无法 无法回答"
).split()
_VOCABULARY_MULTIPLE = 64


def write_tokenizer(folder: str | os.PathLike[str], texts: Iterable[str] | None = None) -> int:
    """Writes `tokenizer.model`, `tokenizer.json` and `tokenizer_config.json`.

    Args:
        folder: An existing folder.
        texts: Texts whose words become one token each; those of the nano world by default.

    Returns:
        Number of tokens, special ones included.

    Example:
        >>> from torchtune.models.llama3 import llama3_tokenizer
        >>> write_tokenizer("llm")
        >>> tokenizer = llama3_tokenizer("llm/tokenizer.model", "llm/tokenizer.json")
    """
    folder = Path(folder)
    ranks = _learn_ranks(_nano_words() if texts is None else _words(texts))
    specials = _special_tokens(len(ranks))
    with atomic_write(folder / "tokenizer.model") as path:
        lines = (f"{base64.b64encode(piece).decode()} {rank}\n" for piece, rank in ranks.items())
        path.write_text("".join(lines))
    with atomic_write(folder / "tokenizer.json") as path:
        _fast_tokenizer(ranks, specials).save(str(path))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|begin_of_text|>",
            "eos_token": "<|eot_id|>",
            "pad_token": "<|finetune_right_pad_id|>",
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": 131072,
        },
    )
    return len(ranks) + len(specials)


def _word_texts() -> Iterator[str]:
    """Texts that hold every word in every place it can take: at a start, after a space."""
    rng = random.Random(0)
    for lang in LANGUAGES:
        for table in _lexicon.TABLES:
            for entry in table:
                fields = (lang,) if hasattr(entry, lang) else (f"{lang}_m", f"{lang}_f")
                for field in fields:
                    yield f", {getattr(entry, field)}"
        for table in _STARTING_TABLES:
            yield from (capitalize(getattr(entry, lang)) + "." for entry in table)
        for _ in range(500):
            sentence = draw_sentence(rng)
            question = draw_question(sentence, lang, rng, answerable=True)
            yield f" {question.text}\n"
            yield sentence.text(lang) + "\n"
        yield UNANSWERABLE[lang]
    for row in lm_rows(rng, lambda: draw_sentence(rng), 3000):
        yield from chain(*row["turns"])
    prompts = PromptTemplates.from_yaml("mcif_fixed")
    for task, languages in prompts.tasks.items():
        for lang in languages:
            yield from ("\n" + text.format(question="") for text in prompts.pool(task, lang))
    yield from ("system", "user", "assistant")


def _nano_words() -> set[str]:
    words = set(_CHINESE_WORDS) | _words(_word_texts())
    for table in _lexicon.TABLES:
        for entry in table:
            words |= {entry.zh, getattr(entry, "classifier", entry.zh)}
    return words


def _words(texts: Iterable[str]) -> set[str]:
    split = pre_tokenizers.Split(Regex(CL100K_PATTERN), "isolated")
    pieces = {piece for text in texts for piece, _ in split.pre_tokenize_str(text)}
    return {piece for piece in pieces if not _has_chinese(piece)}


def _learn_ranks(words: set[str]) -> dict[bytes, int]:
    """Collects the pieces: the 256 bytes, every word, and what Chinese words are merged from.

    Both libraries look a word up whole before they merge bytes, so words between spaces need
    nothing in between; Chinese words are parts of longer runs, in which they have to be found.
    """
    # Learnt over characters, whose bytes are joined first: no piece holds half a character.
    learner = Tokenizer(BPE())
    trainer = BpeTrainer(vocab_size=10_000, min_frequency=1, show_progress=False)
    learner.train_from_iterator(sorted(filter(_has_chinese, words)), trainer)
    ids = learner.get_vocab()
    pieces = [bytes([byte]) for byte in range(256)]
    for piece in sorted(ids, key=ids.__getitem__):
        encoded = piece.encode()
        ends = range(2, len(encoded) + 1) if len(piece) == 1 else (len(encoded),)
        pieces += [encoded[:end] for end in ends]
    pieces += [word.encode() for word in sorted(words)]
    return {piece: rank for rank, piece in enumerate(dict.fromkeys(pieces))}


def _has_chinese(text: str) -> bool:
    return any("\u4e00" <= char <= "\u9fff" for char in text)


def _special_tokens(num_pieces: int) -> dict[str, int]:
    """Numbers torchtune's special tokens after the pieces; reserved ones fill up the vocabulary."""
    names = list(SPECIAL_TOKENS)
    while (num_pieces + len(names)) % _VOCABULARY_MULTIPLE:
        names.append(f"<|reserved_special_token_{len(names) - len(SPECIAL_TOKENS) + 2}|>")
    return {name: num_pieces + index for index, name in enumerate(names)}


def _fast_tokenizer(ranks: dict[bytes, int], specials: dict[str, int]) -> Tokenizer:
    """Builds what transformers loads, in the way Llama-3's own was converted from tiktoken."""
    chars = _byte_chars()

    def written(piece: bytes) -> str:
        return "".join(chars[byte] for byte in piece)

    # tiktoken joins any two neighbours whose whole is a piece, so every way to cut one is a merge.
    merges = [
        (written(piece[:cut]), written(piece[cut:]))
        for piece in ranks
        for cut in range(1, len(piece))
        if piece[:cut] in ranks and piece[cut:] in ranks
    ]
    vocabulary = {written(piece): rank for piece, rank in ranks.items()}
    tokenizer = Tokenizer(BPE(vocabulary, merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CL100K_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in specials]
    )
    begin = "<|begin_of_text|>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A",
        pair=f"{begin} $A {begin}:1 $B:1",
        special_tokens=[(begin, specials[begin])],
    )
    return tokenizer


def _byte_chars() -> dict[int, str]:
    """The printable character that stands for each byte in `tokenizer.json` (GPT-2's mapping)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    chars = {byte: chr(byte) for byte in printable}
    return chars | {byte: chr(256 + index) for index, byte in enumerate(others)}
