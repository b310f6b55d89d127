import pytest

from torchtune_speech.evaluation._flags import count_flags, row_flags

REFERENCE = "one two three four five six"


def flags(prediction, target=REFERENCE, asked=None, **fields):
    return row_flags({"target": target, "prediction": prediction, **fields}, asked)


@pytest.mark.parametrize(
    ("words", "expected"),
    [(2, ["under_length"]), (3, []), (6, []), (12, []), (13, ["over_length"])],
)
def test_lengths(words, expected):
    assert flags(" ".join("abcdefghijklm"[:words])) == expected


def test_short_references_say_nothing_of_length():
    assert flags("no", "no, he does not") == []
    assert flags("no", "no, he does not sleep") == ["under_length"]
    assert flags("狗", "狗坐在花园里") == ["under_length"]


def test_other_faults():
    assert flags("!!") == ["empty"]
    assert flags("", finish_reason="stop") == ["empty"]
    assert flags("x " * 12) == ["loop"]
    assert flags("x " * 12, "x " * 12) == []
    assert flags(REFERENCE, finish_reason="length") == ["length"]
    assert flags(REFERENCE, asked=False) == ["wrong_language"]
    assert flags(REFERENCE, asked=True) == []


def test_counts():
    assert count_flags([["loop", "over_length"], [], ["loop", "length"], ["empty"]]) == {
        "empty": 1,
        "loops": 2,
        "length_finishes": 1,
        "over_length": 1,
        "under_length": 0,
        "wrong_language": 0,
    }
