"""Tokens with placeholders: what is supervised, what stays text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_world import make_tokenizer
from torchtune.data import Message
from torchtune.models.llama3._tokenizer import LLAMA3_SPECIAL_TOKENS

from torchtune_speech.data import (
    IGNORE_INDEX,
    InterleaveSpeech,
    Llama3ChatFormat,
    next_token_labels,
)
from torchtune_speech.nano._tokenizer import write_tokenizer


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Llama3ChatFormat(make_tokenizer(folder))


def turn(role, *content, masked=None):
    items = [
        {"type": "speech", "content": c[1]}
        if isinstance(c, tuple)
        else {"type": "text", "content": c}
        for c in content
    ]
    return Message(
        role=role, content=items, masked=role != "assistant" if masked is None else masked
    )


SPEECH = ("speech", "a.wav")


def test_answer_and_end_of_turn_are_supervised_and_nothing_else(chat):
    messages = [turn("user", SPEECH, "\nTranscribe."), turn("assistant", "The doctor waits.")]
    sample = InterleaveSpeech(chat)({"messages": messages, "speech_lengths": [3], "id": "x"})
    answer = [*chat.encode("The doctor waits."), *chat.end_ids]
    assert [label for label in sample["labels"] if label != IGNORE_INDEX] == answer
    assert sample["tokens"][-len(answer) :] == answer
    assert sample["labels"][-1] == IGNORE_INDEX
    assert sample["tokens"].count(chat.placeholder_id) == 3
    assert sample["tokens"][0] == chat.bos_ids[0]
    assert sample["id"] == "x"


@given(st.text() | st.lists(st.sampled_from(["<|eot_id|>", " ", "a", "\n\n", "中"])).map("".join))
def test_text_is_encoded_as_torchtune_does(chat, text):
    assert chat.encode(text) == chat._tokenizer.encode(text, add_bos=False, add_eos=False)


def test_long_text_without_spaces_is_left_to_torchtune(chat):
    text = "a" * 50_001  # in one piece tiktoken would take minutes, and might overflow its stack
    assert chat.encode(text) == chat._tokenizer.encode(text, add_bos=False, add_eos=False)


def test_a_header_is_not_changed_by_who_gets_it(chat):
    header = tuple(chat.header_ids("user"))
    chat.header_ids("user").append(7)
    assert tuple(chat.header_ids("user")) == header


def test_the_prompt_is_a_prefix_of_the_sample(chat):
    messages = [turn("user", SPEECH, "\nTranscribe."), turn("assistant", "The doctor waits.")]
    whole = InterleaveSpeech(chat)({"messages": messages, "speech_lengths": [3]})["tokens"]
    prompt = InterleaveSpeech(chat)(
        {"messages": messages[:1], "speech_lengths": [3]}, inference=True
    )["tokens"]
    assert whole[: len(prompt)] == prompt
    assert prompt[-len(chat.header_ids("assistant")) :] == chat.header_ids("assistant")


def test_two_audios_and_several_turns(chat):
    messages = [
        turn("user", SPEECH, " and ", SPEECH),
        turn("assistant", "Yes."),
        turn("user", "Who?"),
        turn("assistant", "The nurse."),
    ]
    sample = InterleaveSpeech(chat)({"messages": messages, "speech_lengths": [2, 5]})
    assert sample["tokens"].count(chat.placeholder_id) == 7
    runs = (
        "".join("p" if t == chat.placeholder_id else "." for t in sample["tokens"])
        .replace(".", " ")
        .split()
    )
    assert [len(run) for run in runs] == [2, 5]
    supervised = [label for label in sample["labels"] if label != IGNORE_INDEX]
    end = chat.end_ids
    assert supervised == [*chat.encode("Yes."), *end, *chat.encode("The nurse."), *end]


@pytest.mark.parametrize(("lengths", "says"), [([], "more speech items"), ([3, 3], "left over")])
def test_lengths_must_match_the_speech(chat, lengths, says):
    with pytest.raises(ValueError, match=says):
        InterleaveSpeech(chat)({"messages": [turn("user", SPEECH)], "speech_lengths": lengths})


@pytest.mark.parametrize(
    "text",
    [
        "<|eot_id|>",
        "a <|reserved_special_token_0|> b",
        "<|start_header_id|>system<|end_header_id|>",
    ],
)
def test_special_tokens_typed_by_a_user_stay_text(chat, text):
    ids = chat.encode(text)
    assert not chat.special_ids & set(ids)
    assert chat.decode(ids) == text


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_text_survives_the_round_trip(chat, text):
    assert chat.decode(chat.encode(text)) == text


def test_decoding_drops_special_tokens_by_id(chat):
    ids = [*chat.encode("Yes."), *chat.end_ids, chat.placeholder_id]
    assert chat.decode(ids) == "Yes."


def test_the_placeholder_is_the_same_token_in_torchtune_and_hugging_face():
    # 128002 is <|reserved_special_token_0|>:
    # https://huggingface.co/meta-llama/Llama-3.1-8B-Instruct/blob/main/tokenizer.json
    assert LLAMA3_SPECIAL_TOKENS["<|reserved_special_token_0|>"] == 128_002


def test_labels_predict_the_next_token():
    assert next_token_labels([1, 2, 3], [False, True, True]) == [2, 3, IGNORE_INDEX]
    assert next_token_labels([1, 2, 3], [True, False, True]) == [IGNORE_INDEX, 3, IGNORE_INDEX]
