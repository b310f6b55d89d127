import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torchtune.models.llama3 import llama3_tokenizer
from torchtune.models.llama3._tokenizer import SPECIAL_TOKENS
from transformers import AutoTokenizer

from torchtune_speech.data import PromptTemplates
from torchtune_speech.nano._grammar import LANGUAGES, draw_question, draw_sentence
from torchtune_speech.nano._tokenizer import write_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def torchtune_tokenizer(folder):
    return llama3_tokenizer(str(folder / "tokenizer.model"), str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def hf_tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


def texts():
    rng = random.Random(0)
    for _ in range(150):
        sentence = draw_sentence(rng)
        for lang in LANGUAGES:
            yield sentence.text(lang)
            question = draw_question(sentence, lang, rng, answerable=rng.random() < 0.8)
            yield f"{sentence.text('en')}\n{question.text}"
            yield question.answer
    prompts = PromptTemplates.from_yaml("mcif_mixed")
    for task, languages in prompts.tasks.items():
        for lang in languages:
            yield from prompts.pool(task, lang)


def encode(tokenizer, text):
    return tokenizer.encode(text, add_bos=False, add_eos=False)


def test_torchtune_and_transformers_agree(torchtune_tokenizer, hf_tokenizer):
    for text in texts():
        ids = encode(torchtune_tokenizer, text)
        assert hf_tokenizer.encode(text, add_special_tokens=False) == ids
        assert torchtune_tokenizer.decode(ids) == text
        assert hf_tokenizer.decode(ids) == text


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40) | st.text(alphabet=" \nstation'车站里äè.", max_size=30))
def test_any_text_agrees(torchtune_tokenizer, hf_tokenizer, text):
    ids = encode(torchtune_tokenizer, text)
    assert hf_tokenizer.encode(text, add_special_tokens=False) == ids
    assert torchtune_tokenizer.tt_model.decode(ids) == text


def test_a_word_is_a_token(torchtune_tokenizer):
    rng = random.Random(0)
    words = {word for _ in range(2000) for word in draw_sentence(rng).text("en")[:-1].split()[1:]}
    assert len(words) >= 200
    for word in words:
        assert len(encode(torchtune_tokenizer, " " + word)) == 1, word
    pieces = [
        torchtune_tokenizer.decode([i])
        for i in encode(torchtune_tokenizer, "护士在花园里买七个红色的苹果。")
    ]
    assert pieces == ["护士", "在花园里", "买", "七", "个", "红色的", "苹果", "。"]


def test_fixed_prompts_are_short(torchtune_tokenizer):
    prompts = PromptTemplates.from_yaml("mcif_fixed")
    for task, languages in prompts.tasks.items():
        for lang in languages:
            for text in prompts.pool(task, lang):
                ids = encode(torchtune_tokenizer, "\n" + text.replace("{question}", ""))
                assert len(ids) <= 16


def test_special_tokens(torchtune_tokenizer, hf_tokenizer):
    specials = torchtune_tokenizer.special_tokens
    assert set(SPECIAL_TOKENS) <= set(specials)
    base = torchtune_tokenizer.base_vocab_size
    assert sorted(specials.values()) == list(range(base, base + len(specials)))
    assert torchtune_tokenizer.vocab_size == len(hf_tokenizer) == base + len(specials)
    assert torchtune_tokenizer.vocab_size % 64 == 0
    for name, number in specials.items():
        assert hf_tokenizer.convert_tokens_to_ids(name) == number
    assert hf_tokenizer.bos_token_id == torchtune_tokenizer.bos_id
    assert hf_tokenizer.eos_token_id == torchtune_tokenizer.eot_id
    assert hf_tokenizer.pad_token_id == torchtune_tokenizer.pad_id


def test_chat_template_is_llama_3s(hf_tokenizer):
    text = hf_tokenizer.apply_chat_template(
        [{"role": "user", "content": " Hi. "}, {"role": "assistant", "content": "Ho."}],
        tokenize=False,
    )
    assert text == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHo.<|eot_id|>"
    )
    opened = hf_tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi."}], tokenize=False, add_generation_prompt=True
    )
    assert opened.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")


def test_same_files_every_time(folder, tmp_path):
    write_tokenizer(tmp_path)
    for file in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"):
        assert (folder / file).read_bytes() == (tmp_path / file).read_bytes()
