import pytest

from torchtune_speech.evaluation import UNANSWERABLE
from torchtune_speech.evaluation._parts import answer_type, bucket_names, duration_bucket


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(0, "0-5"), (4.99, "0-5"), (5, "5-10"), (19.9, "10-20"), (20, "20-30"), (30, "30-")]
    + [(3600, "30-"), (None, None), ("7", None), (float("nan"), None), (-1, None), (True, None)],
)
def test_duration_buckets(seconds, bucket):
    assert duration_bucket({"duration_s": seconds}) == bucket


def test_buckets_in_order():
    assert bucket_names() == ["0-5", "5-10", "10-20", "20-30", "30-"]
    assert duration_bucket({}) is None


@pytest.mark.parametrize(
    ("lang", "reference", "expected"),
    [
        ("en", "Not answerable.", "unanswerable"),
        ("zh", "无法回答。", "unanswerable"),
        ("de", "Not answerable.", "short span"),  # another language's refusal
        ("en", "Yes", "yes/no"),
        ("en", "No, he was at home.", "yes/no"),
        ("en", "No man is an island", "sentence"),
        ("en", "No-nonsense talk", "short span"),
        ("en", "Nobody", "short span"),
        ("de", "Ja.", "yes/no"),
        ("it", "Sì, certo.", "yes/no"),
        ("zh", "是的，他在家。", "yes/no"),
        ("zh", "不是", "yes/no"),
        ("en", "1989", "number/date"),
        ("en", "on May 3rd, 1989", "number/date"),
        ("en", "three red cars", "number/date"),
        ("en", "It was in 1989 that the wall fell.", "sentence"),
        ("de", "im Mai", "number/date"),
        ("de", "ein Hund", "short span"),
        ("it", "due gatti", "number/date"),
        ("zh", "三个", "number/date"),
        ("zh", "二〇一九年五月", "number/date"),
        ("zh", "一起走", "short span"),
        ("en", "in the garden", "short span"),
        ("en", "under the old tree", "sentence"),
        ("zh", "在花园里面呢", "short span"),  # six characters are three words
        ("zh", "在花园里面坐着", "sentence"),
    ],
)
def test_answer_types(lang, reference, expected):
    assert answer_type({"target": reference, "target_lang": lang}, UNANSWERABLE) == expected


def test_choices_make_a_question_multiple_choice():
    row = {"target": "A", "choices": ["A", "B"]}
    assert answer_type(row, UNANSWERABLE) == "multiple choice"
    assert answer_type({**row, "target": "Not answerable."}, UNANSWERABLE) == "unanswerable"
    assert answer_type({"target": "A", "choices": []}, UNANSWERABLE) == "short span"
