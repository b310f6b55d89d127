"""Joining the texts of windows."""

from hypothesis import given
from hypothesis import strategies as st

from torchtune_speech.generation import join_segment_rows, join_texts


def test_texts_are_joined_as_their_script_wants():
    assert join_texts(["We met.", "", " He left."]) == "We met. He left."
    assert join_texts(["我爱你。", "他走了。"]) == "我爱你。他走了。"
    assert join_texts(["用", "Python 写"]) == "用 Python 写"
    assert join_texts([]) == ""


def test_words_of_an_overlap_come_once():
    left, right = "and then we saw the red hou", "saw the red house, and went in."
    assert join_texts([left, right], 2.0) == "and then we saw the red house, and went in."
    assert join_texts([left, right]) == f"{left} {right}"
    # Case and punctuation of the second text; what the first window's edge cut is dropped.
    assert join_texts(["It rained. The end", "The end. Applause"], 1.0) == (
        "It rained. The end. Applause"
    )


def test_chinese_words_of_an_overlap_come_once():
    assert join_texts(["今天我们讨论语音翻", "讨论语音翻译的问题"], 2.0) == (
        "今天我们讨论语音翻译的问题"
    )


def test_one_small_word_in_common_is_chance():
    assert join_texts(["he is in a", "a big house"], 1.0) == "he is in a a big house"
    assert join_texts(["over the mountains", "mountains are high"], 1.0) == (
        "over the mountains are high"
    )


def test_repetition_far_from_the_seam_stays():
    texts = ["the cat sat on the mat and so on and so forth all day long", "all day long the cat"]
    assert join_texts(texts, 0.5).startswith("the cat sat on the mat and so on and so forth")
    assert join_texts(texts, 0.5).endswith("all day long the cat")


@given(st.lists(st.sampled_from(["alpha", "beta", "gamma", "delta"]), max_size=8))
def test_without_an_overlap_no_word_is_lost(words):
    assert join_texts(words).split() == words


def row(id_, text, **more):
    return {"id": id_, "task": "asr", "prediction": text, "finish_reason": "stop"} | more


def test_rows_of_a_recording_become_one():
    window = {"segment_of": "t", "overlap_s": 0.0, "num_tokens": 3, "seconds": 0.5}
    rows = [
        row("a", "alone", target="alone"),
        row("t#0", "one two", **window, offset=0.0, duration=9.0, duration_s=9.0),
        row("t#1", "three", **window, offset=9.0, duration=4.0, duration_s=4.0, loops=1)
        | {"finish_reason": "loop"},
        row("b", "too"),
    ]
    first, joined, last = join_segment_rows(rows)
    assert (first, last) == (rows[0], rows[3])
    assert joined == {
        "id": "t",
        "task": "asr",
        "prediction": "one two three",
        "finish_reason": "loop",
        "num_tokens": 6,
        "seconds": 1.0,
        "duration_s": 13.0,
        "loops": 1,
        "segments": [
            {"offset": 0.0, "duration": 9.0, "prediction": "one two"},
            {"offset": 9.0, "duration": 4.0, "prediction": "three"},
        ],
    }


def test_two_recordings_in_a_row_stay_apart():
    rows = [row(f"{t}#{i}", f"{t}{i}", segment_of=t) for t in "xy" for i in range(2)]
    assert [r["prediction"] for r in join_segment_rows(rows)] == ["x0 x1", "y0 y1"]
