import pytest
from torchtune.models.llama3 import Llama3Tokenizer
from torchtune.models.llama3._tokenizer import LLAMA3_SPECIAL_TOKENS

from torchtune_speech.data import chat_format
from torchtune_speech.nano._llm import load_tokenizer
from torchtune_speech.nano._tokenizer import write_tokenizer


@pytest.fixture
def chat(tmp_path):
    """Small, with the numbers of torchtune's own table for Llama 3, which leaves one out."""
    write_tokenizer(tmp_path)
    base = load_tokenizer(tmp_path).base_vocab_size
    special = {name: base + number - 128_000 for name, number in LLAMA3_SPECIAL_TOKENS.items()}
    return chat_format(Llama3Tokenizer(str(tmp_path / "tokenizer.model"), special_tokens=special))


def test_the_number_that_torchtune_leaves_out_is_no_text(chat):
    base = chat.vocab_size - 256
    assert base + 11 not in chat.special_tokens.values()
    assert set(range(base, base + 256)) <= chat.special_ids
    assert chat.decode([base + 11]) == ""
    assert chat.token_texts[base:] == 256 * [""] and all(chat.token_texts[3:base])
