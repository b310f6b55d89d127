"""Llama-3's chat format."""

from collections.abc import Sequence
from functools import cached_property

from torchtune.models.llama3 import Llama3Tokenizer
from torchtune.modules.transforms.tokenizers._tiktoken import MAX_NO_WHITESPACE_CHARS


class Llama3ChatFormat:
    """Llama-3's chat format around contents that are already token ids.

    torchtune's tokenizer strips every chunk of text, puts the assistant's header into the loss
    and appends an end-of-text token; speech between two chunks needs the plain pieces instead.
    Format: https://www.llama.com/docs/model-cards-and-prompt-formats/meta-llama-3

    Args:
        tokenizer: torchtune's Llama-3 tokenizer.
    """

    def __init__(self, tokenizer: Llama3Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.bos_ids = [tokenizer.bos_id]
        self.end_ids, self.after_ids = [tokenizer.eot_id], []
        self.pad_id = tokenizer.pad_id
        self.stop_ids = list(tokenizer.stop_tokens)
        # A reserved token that torchtune and Hugging Face number alike (128002 in Llama 3).
        self.placeholder_id = tokenizer.special_tokens["<|reserved_special_token_0|>"]
        self.special_tokens = dict(tokenizer.special_tokens)
        named = frozenset(self.special_tokens.values())
        self.vocab_size = tokenizer.base_vocab_size + len(named)
        # torchtune's table for Llama 3 leaves out 128011, which is reserved like those beside it.
        self.special_ids = named | set(range(tokenizer.base_vocab_size, self.vocab_size))
        self._headers: dict[str, list[int]] = {}  # role -> token ids; every sample asks for them

    def header_ids(self, role: str) -> list[int]:
        """Token ids that open a turn of this role."""
        if role not in self._headers:
            t = self._tokenizer
            opening = [t.start_header_id, *self.encode(role), t.end_header_id]
            self._headers[role] = [*opening, *self.encode("\n\n")]
        return list(self._headers[role])

    @property
    def answer_ids(self) -> list[int]:
        """Token ids that open the turn of the answer."""
        return self.header_ids("assistant")

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text; what looks like a special token stays text."""
        if len(text) > MAX_NO_WHITESPACE_CHARS:
            return self._tokenizer.encode(text, add_bos=False, add_eos=False)
        # The same ids: torchtune looks at each character, in case a text is so long that tiktoken
        # would be slow, which takes most of the time.
        return self._tokenizer.tt_model.tt_model.encode_ordinary(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; special tokens are dropped by id, not by what they look like."""
        kept = [i for i in ids if i not in self.special_ids]
        return self._tokenizer.decode(kept, truncate_at_eos=False, skip_special_tokens=False)

    @cached_property
    def token_texts(self) -> list[str]:
        """Text of each token, "" for special ones."""
        return [self.decode([i]) for i in range(self.vocab_size)]
