"""Qwen3's tokenizer and chat format, from the files of its Hugging Face folder."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from torchtune_speech.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_START, _END, _PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
# Of the vision models that share the tokenizer; the text models never saw it.
_PLACEHOLDER = "<|vision_pad|>"
_USER_TURN = f"{_START}user\nHi{_END}\n"


class Qwen3ChatFormat:
    """Qwen3's chat format around contents that are already token ids, without thinking.

    The folder's own chat template says how an answer is opened: Qwen3-4B-Instruct-2507 with the
    header alone, the first Qwen3 models with an empty block of thoughts after it
    (``enable_thinking=False``). Format: https://huggingface.co/Qwen/Qwen3-4B-Instruct-2507
    (``tokenizer_config.json``).

    Args:
        path: Hugging Face folder with the tokenizer's files; ``config.json`` beside them says how
            many rows the embedding table has.

    Raises:
        InputError: if the files are missing or damaged, or the template is another.

    Example:
        >>> chat = Qwen3ChatFormat("/tmp/Qwen3-4B-Instruct-2507")
        >>> prompt = chat.header_ids("user") + chat.encode("Hi") + chat.end_ids + chat.after_ids
        >>> prompt += chat.answer_ids
    """

    def __init__(self, path: str) -> None:
        tokenizer = _hf_tokenizer(path)
        self.special_tokens = added = tokenizer.get_added_vocab()
        if missing := [name for name in (_START, _END, _PAD, _PLACEHOLDER) if name not in added]:
            raise InputError(f"{path}: its tokenizer has no {missing[0]}; give a Qwen3 model")
        self._text = _text_tokenizer(tokenizer)
        self._start_id = added[_START]
        self.bos_ids, self.end_ids = [], [added[_END]]
        self.pad_id, self.placeholder_id = added[_PAD], added[_PLACEHOLDER]
        self.stop_ids = [added[_END], added[_PAD]]
        self.after_ids = self.encode("\n")
        self.vocab_size = _table_rows(path) or len(tokenizer)
        texts = set(self._text.get_vocab().values()) - set(added.values())
        self.special_ids = frozenset(range(self.vocab_size)) - texts
        self._answer_ids = _answer_ids(tokenizer, path)

    def header_ids(self, role: str) -> list[int]:
        """Token ids that open a turn of this role."""
        return [self._start_id, *self.encode(f"{role}\n")]

    @property
    def answer_ids(self) -> list[int]:
        """Token ids that open the turn of the answer."""
        return list(self._answer_ids)

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text; what looks like a special token stays text."""
        return self._text.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; special tokens are dropped by id, not by what they look like."""
        kept = [i for i in ids if i not in self.special_ids]
        return self._text.decode(kept, skip_special_tokens=False)

    @cached_property
    def token_texts(self) -> list[str]:
        """Text of each token, "" for special ones."""
        return [self.decode([i]) for i in range(self.vocab_size)]


def _hf_tokenizer(path: str) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer  # takes seconds, and Llama does not need it

    if not Path(path, "tokenizer_config.json").is_file():
        raise InputError(
            f"{path}: no tokenizer_config.json there; give the folder of a Hugging Face model"
        )
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or ["unreadable"])[0]
        raise InputError(
            f"{path}: its tokenizer cannot be read ({reason}); download the model again"
        ) from error


def _text_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> Tokenizer:
    """The tokenizer without special tokens, so that a text's "<|im_end|>" ends nothing."""
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    return Tokenizer.from_str(json.dumps(parts | {"added_tokens": [], "post_processor": None}))


def _table_rows(path: str) -> int | None:
    """Rows of the embedding table, which are more than the tokens; None where nothing says."""
    file = Path(path, "config.json")
    return json.loads(file.read_text()).get("vocab_size") if file.is_file() else None


def _answer_ids(tokenizer: "PreTrainedTokenizerBase", path: str) -> list[int]:
    """What the folder's template puts in front of an answer without thinking."""
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": "Hi"}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
    except ValueError:  # there is none
        text = ""
    if not text.startswith(f"{_USER_TURN}{_START}assistant\n"):
        raise InputError(
            f"{path}: its chat template is not Qwen3's; give an instruction-tuned Qwen3 model"
        )
    return tokenizer.encode(text.removeprefix(_USER_TURN), add_special_tokens=False)
