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


def test_what_only_one_text_says_is_never_dropped():
    pairs = [
        ("he is in a", "a big house"),
        ("今天我们讨论一个问题。", "他说我们走了。"),
        (
            "Wir haben in der Stadt gewohnt und dann sind wir umgezogen",
            "dann lebten wir in der neuen Wohnung",
        ),
        ("the history of the old city and those who live there now", "now many of the tourists"),
    ]
    for left, right in pairs:
        joined = join_texts([left, right], 2.0)
        assert joined.replace(" ", "") == (left + right).replace(" ", "")


def test_the_seam_is_the_last_place_where_both_agree():
    assert join_texts(["he said yes I think yes I think", "yes I think so"], 2.0) == (
        "he said yes I think yes I think so"
    )
    assert join_texts(["over the mountains", "mountains are high"], 1.0) == (
        "over the mountains are high"
    )


@given(st.lists(st.sampled_from(["alpha", "beta", "gamma", "delta"]), max_size=8))
def test_without_an_overlap_no_word_is_lost(words):
    assert join_texts(words).split() == words


def test_a_window_that_was_cut_is_told_before_one_that_looped():
    reasons = ("stop", "loop", "length")
    rows = [
        row(f"t#{i}", "x", segment_of="t") | {"finish_reason": r} for i, r in enumerate(reasons)
    ]
    assert join_segment_rows(rows)[0]["finish_reason"] == "length"


def row(id_, text, **more):
    return {"id": id_, "task": "asr", "prediction": text, "finish_reason": "stop"} | more


def test_rows_of_a_recording_become_one():
    counts = {"prompt_tokens": 20, "num_tokens": 3, "seconds": 0.5}
    window = {"segment_of": "t", "overlap_s": 0.0} | counts
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
        "prompt_tokens": 40,
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


def test_seconds_that_windows_share_count_once():
    rows = [
        row(f"t#{i}", "one", segment_of="t", num_segments=2, overlap_s=2.0, duration_s=length)
        for i, length in enumerate((30.0, 20.0))
    ]
    assert join_segment_rows(rows)[0]["duration_s"] == 48.0
