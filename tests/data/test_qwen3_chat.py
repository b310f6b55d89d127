"""Qwen3's chat format against Hugging Face's tokenizer and chat template."""

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_qwen3 import ADDED, TEMPLATE_2507, TEMPLATE_THINKING, make_qwen3, write_qwen3_tokenizer
from tiny_world import make_llm, make_tokenizer
from torchtune.data import Message
from transformers import AutoTokenizer

from torchtune_speech.data import (
    IGNORE_INDEX,
    InterleaveSpeech,
    Llama3ChatFormat,
    Qwen3ChatFormat,
    chat_format,
)
from torchtune_speech.errors import InputError

TEMPLATES = {"2507": TEMPLATE_2507, "thinking": TEMPLATE_THINKING}
QUESTION, ANSWER = "Who sings in the garden?\n\nYour answer:", "The nurse, 每年.\n"
CONVERSATIONS = [
    [("user", QUESTION)],
    [("system", "Be brief."), ("user", QUESTION), ("assistant", ANSWER), ("user", "Where?")],
]


@pytest.fixture(scope="module", params=TEMPLATES)
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    write_qwen3_tokenizer(folder, TEMPLATES[request.param])
    return folder


@pytest.fixture(scope="module")
def chat(folder):
    return Qwen3ChatFormat(str(folder))


@pytest.fixture(scope="module")
def hf(folder):
    return AutoTokenizer.from_pretrained(folder)


def messages_of(turns):
    """The same conversation for torchtune and for Hugging Face."""
    ours = [
        Message(role=role, content=[{"type": "text", "content": text}], masked=role != "assistant")
        for role, text in turns
    ]
    return ours, [{"role": role, "content": text} for role, text in turns]


@pytest.mark.parametrize("turns", CONVERSATIONS)
def test_prompts_equal_the_chat_template(chat, hf, turns):
    ours, theirs = messages_of(turns)
    tokens = InterleaveSpeech(chat)({"messages": ours, "speech_lengths": []}, inference=True)
    expected = hf.apply_chat_template(
        theirs, add_generation_prompt=True, enable_thinking=False, return_dict=False
    )
    assert tokens["tokens"] == expected


@pytest.mark.parametrize("turns", CONVERSATIONS)
def test_samples_equal_the_chat_template_and_supervise_the_answers(chat, hf, turns):
    ours, theirs = messages_of([*turns, ("assistant", "In the garden.")])
    sample = InterleaveSpeech(chat)({"messages": ours, "speech_lengths": []})
    assert sample["tokens"] == hf.apply_chat_template(theirs, return_dict=False)
    supervised = [label for label in sample["labels"] if label != IGNORE_INDEX]
    answers = [ANSWER] * (len(turns) > 1) + ["In the garden."]
    assert hf.decode(supervised) == "".join(f"{answer}<|im_end|>" for answer in answers)


def test_only_the_older_template_opens_with_an_empty_block_of_thoughts(folder, chat, hf):
    thoughts = "<think>\n\n</think>\n\n" if folder.name.startswith("thinking") else ""
    assert hf.decode(chat.answer_ids) == f"<|im_start|>assistant\n{thoughts}"


def test_placeholders_stand_between_the_texts_around_speech(chat, hf):
    content = [
        {"type": "text", "content": "<speech>"},
        {"type": "speech", "content": "a.wav"},
        {"type": "text", "content": "</speech>\n Question: Who?"},
    ]
    messages = [Message(role="user", content=content)]
    tokens = InterleaveSpeech(chat)({"messages": messages, "speech_lengths": [3]})["tokens"]
    expected = f"<speech>{'<|vision_pad|>' * 3}</speech>\n Question: Who?"
    assert hf.decode(tokens) == f"<|im_start|>user\n{expected}<|im_end|>\n"


@pytest.mark.parametrize("name", [name for name, _ in ADDED])
def test_special_tokens_typed_by_a_user_stay_text(chat, name):
    ids = chat.encode(f"a {name} b")
    assert not chat.special_ids & set(ids)
    assert chat.decode(ids) == f"a {name} b"


@given(text=st.text(st.characters(codec="utf-8"), max_size=30))
def test_plain_text_is_encoded_as_hugging_face_does(chat, hf, text):
    assert chat.encode(text) == hf.encode(text, add_special_tokens=False, split_special_tokens=True)


def test_stops_padding_and_the_placeholder_are_tokens_of_their_own(chat, hf):
    names = ["<|im_end|>", "<|endoftext|>", "<|vision_pad|>"]
    end, pad, placeholder = hf.convert_tokens_to_ids(names)
    assert (chat.end_ids, chat.stop_ids) == ([end], [end, pad])
    assert (chat.pad_id, chat.placeholder_id) == (pad, placeholder)
    assert {end, pad, placeholder} < chat.special_ids
    assert chat.decode([*chat.encode("Yes."), end, placeholder]) == "Yes."


def test_rows_of_the_embedding_table_that_are_no_token_are_never_text(tmp_path):
    chat = Qwen3ChatFormat(str(make_qwen3(tmp_path / "llm")))
    rows = json.loads((tmp_path / "llm" / "config.json").read_text())["vocab_size"]
    known = len(AutoTokenizer.from_pretrained(tmp_path / "llm"))
    assert chat.vocab_size == rows > known
    assert set(range(known, rows)) < chat.special_ids
    assert chat.token_texts[known:] == [""] * (rows - known)
    assert all(chat.token_texts[i] for i in range(rows) if i not in chat.special_ids)


def test_the_kind_of_tokenizer_gives_the_chat_format(chat, tmp_path):
    assert chat_format(chat) is chat
    assert isinstance(chat_format(make_tokenizer(make_llm(tmp_path / "llm"))), Llama3ChatFormat)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: (f / "tokenizer_config.json").unlink(), "no tokenizer_config.json there"),
        (lambda f: rewrite(f, chat_template=None), "its chat template is not Qwen3's"),
        (lambda f: rewrite(f, chat_template="{{ 'hello' }}"), "its chat template is not Qwen3's"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "its tokenizer cannot be read"),
    ],
)
def test_what_is_no_qwen3_is_refused_in_one_line(folder, tmp_path, change, says):
    shutil.copytree(folder, tmp_path / "llm")
    change(tmp_path / "llm")
    with pytest.raises(InputError, match=says) as error:
        Qwen3ChatFormat(str(tmp_path / "llm"))
    assert "\n" not in str(error.value)


def test_another_familys_tokenizer_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"its tokenizer has no <\|im_start\|>"):
        Qwen3ChatFormat(str(make_llm(tmp_path / "llm")))


def rewrite(folder, **changes):
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
