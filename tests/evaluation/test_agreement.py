import math
import random

import numpy as np
import pytest

from torchtune_speech.errors import InputError
from torchtune_speech.evaluation import _agreement as module
from torchtune_speech.evaluation import agreement, agreement_table, format_agreement
from torchtune_speech.evaluation._agreement_figures import kendall_tau_b, pearson_r, roc_area

SCORES = [1.0, 2.0, 3.0, 4.0, 4.0]
LABELS = [2, 1, 3, 3, 1]


def value(found, figure):
    return found[figure]["value"]


def test_tau_b_with_ties_in_both_by_hand():
    # Of ten pairs four agree and three do not; one is tied in the score, two are in the label.
    found = agreement(SCORES, LABELS)
    assert value(found, "kendall") == pytest.approx((4 - 3) / math.sqrt((10 - 1) * (10 - 2)))


def test_tau_b_does_not_depend_on_the_order_of_rows():
    for seed in range(5):
        order = random.Random(seed).sample(range(5), 5)
        found = agreement([SCORES[i] for i in order], [LABELS[i] for i in order])
        assert value(found, "kendall") == pytest.approx(1 / math.sqrt(72))


def test_pearson_by_hand():
    # Deviations -1.8 -0.8 0.2 1.2 1.2 and 0 -1 1 1 -1.
    assert value(agreement(SCORES, LABELS), "pearson") == pytest.approx(
        (0.8 + 0.2 + 1.2 - 1.2) / math.sqrt(6.8 * 4)
    )
    # Far from zero, where sums of squares would lose the difference.
    shifted = [1e7 + score for score in SCORES]
    assert value(agreement(shifted, LABELS), "pearson") == pytest.approx(1 / math.sqrt(27.2))


def test_roc_area_and_threshold_by_hand():
    found = agreement([0.9, 0.7, 0.7, 0.1], [1, 1, 0, 0])
    # Four pairs of right and wrong: three won, one tied.
    assert value(found, "auc") == pytest.approx(3.5 / 4)
    # 0.4 and 0.8 sort three of four; so does nothing else. The lower run is taken.
    assert found["right_if"] == ">= 0.4"
    assert found["commonest"] == 0.5


@pytest.mark.parametrize(
    ("scores", "labels", "right_if"),
    [
        ([0.1, 0.2, 0.3, 0.9], [0, 0, 1, 1], ">= 0.25"),
        ([0.1, 0.2, 0.3, 0.9], [1, 1, 0, 0], "< 0.25"),  # an error rate
        # 0.2, 0.4 and 0.7 sort four of six: the middle one is furthest from doing worse.
        ([0.1, 0.3, 0.3, 0.5, 0.5, 0.9], [0, 0, 1, 0, 1, 1], ">= 0.4"),
        ([0.84312, 0.84318], [0, 1], ">= 0.84315"),  # as many digits as it takes
        ([0.1, 0.2, 0.3, 0.4, 0.5], [1, 1, 0, 1, 1], "always"),
        ([0.1, 0.2, 0.3, 0.4, 0.5], [0, 0, 1, 0, 0], "never"),
    ],
)
def test_named_threshold(scores, labels, right_if):
    assert agreement(scores, labels)["right_if"] == right_if


def test_accuracy_of_a_metric_that_sorts_all():
    scores = [i / 40 for i in range(40)]
    found = agreement(scores, [score >= 0.5 for score in scores])
    # The halves see the gap a few rows off at most.
    assert value(found, "accuracy") >= 0.9
    falling = agreement(scores, [score < 0.5 for score in scores])
    assert value(falling, "accuracy") == value(found, "accuracy")
    assert value(falling, "kendall") == pytest.approx(-value(found, "kendall"))


def test_accuracy_is_not_optimistic():
    """The best threshold on twenty rows of noise sorts 67 % of the same rows, half of others."""
    accuracies = []
    for seed in range(200):
        rng = random.Random(seed)
        noise, labels = [rng.random() for _ in range(20)], [i % 2 for i in range(20)]
        found = agreement(noise, labels, num_resamples=1, seed=seed)
        accuracies.append(value(found, "accuracy"))
    assert 0.43 < np.mean(accuracies) < 0.53


def test_a_blind_metric_has_tau_near_zero():
    rng = random.Random(0)
    found = agreement(
        [round(rng.random(), 2) for _ in range(2000)], [rng.random() < 0.4 for _ in range(2000)]
    )
    assert abs(value(found, "kendall")) < 0.05
    assert found["kendall"]["low"] < 0 < found["kendall"]["high"]
    assert found["auc"]["low"] < 0.5 < found["auc"]["high"]
    assert abs(value(found, "pearson")) < 0.05
    assert value(found, "accuracy") == pytest.approx(found["commonest"], abs=0.02)


def loop_tau_b(x, y):
    balance = untied_x = untied_y = 0
    for i in range(len(x)):
        for j in range(i):
            a, b = np.sign(x[i] - x[j]), np.sign(y[i] - y[j])
            balance, untied_x, untied_y = balance + a * b, untied_x + abs(a), untied_y + abs(b)
    return balance / math.sqrt(untied_x * untied_y)


@pytest.mark.parametrize("num_labels", [2, 3, 7, 60])
def test_weighted_rows_are_repeated_rows(num_labels):
    rng = np.random.default_rng(num_labels)
    x = rng.integers(0, 9, 40) / 8
    y = rng.integers(0, num_labels, 40).astype(float)
    weights = rng.integers(0, 4, (3, 40)).astype(float)
    order = np.lexsort((y, x))
    x, y, right = x[order], y[order], (y[order] >= num_labels // 2).astype(float)
    for row in range(3):
        repeats = weights[row].astype(int)
        xs, ys, rs = (np.repeat(values, repeats) for values in (x, y, right))
        assert kendall_tau_b(x, y, weights)[row] == pytest.approx(loop_tau_b(xs, ys))
        assert pearson_r(x, y, weights)[row] == pytest.approx(np.corrcoef(xs, ys)[0, 1])
        pairs = np.sign(xs[rs == 1][:, None] - xs[rs == 0])
        assert roc_area(x, right, weights)[row] == pytest.approx((pairs.mean() + 1) / 2)


def correlated(n, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    return x.tolist(), (0.5 * x + math.sqrt(0.75) * rng.normal(size=n)).tolist()


def test_interval_is_as_wide_as_theory_says():
    found = agreement(*correlated(400))["pearson"]
    r = found["value"]
    width = 2 * 1.96 * (1 - r**2) / math.sqrt(400)
    assert found["high"] - found["low"] == pytest.approx(width, rel=0.2)
    assert found["low"] < r < found["high"]


def test_intervals_are_of_the_seed_and_not_of_the_memory(monkeypatch):
    scores, labels = correlated(50)
    labels = [label > 0 for label in labels]
    first = agreement(scores, labels, seed=3)
    assert agreement(scores, labels, seed=3) == first
    assert agreement(scores, labels, seed=4)["kendall"] != first["kendall"]
    monkeypatch.setattr(module, "_CHUNK", 333)
    again = agreement(scores, labels, seed=3)
    for figure in ("kendall", "pearson", "auc", "accuracy"):
        assert again[figure] == pytest.approx(first[figure], abs=1e-12)


def test_rows_of_a_group_are_drawn_together():
    scores, labels = correlated(60)
    alone = agreement(scores, labels)["pearson"]
    groups = [i for i in range(60) for _ in range(9)]
    repeated = [np.repeat(values, 9).tolist() for values in (scores, labels)]
    grouped = agreement(*repeated, groups=groups)["pearson"]
    assert grouped == pytest.approx(alone)
    # Nine copies of each row are no new evidence; taken for it, they make a third of the width.
    fooled = agreement(*repeated)["pearson"]
    ratio = (fooled["high"] - fooled["low"]) / (grouped["high"] - grouped["low"])
    assert ratio == pytest.approx(1 / 3, rel=0.25)


def test_a_group_stays_in_one_half():
    """Were copies in both halves, a threshold could single out each of these rows."""
    rng = random.Random(1)
    labels = [rng.random() < 0.5 for _ in range(30)]
    groups = [i for i in range(30) for _ in range(10)]
    scores = [float(group) for group in groups]
    half = module._halves(np.array(groups), seed=0)
    assert {len(set(half[i * 10 : i * 10 + 10])) for i in range(30)} == {1}
    assert half.sum() == 150
    found = agreement(scores, [labels[g] for g in groups], groups=groups)
    assert value(found, "accuracy") < 0.75
    one = agreement([0.1, 0.2, 0.3], [0, 1, 1], groups=["a", "a", "a"])
    assert one["accuracy"] == {"value": None, "reason": "one group: no second half"}


def test_rows_without_a_value_are_left_out_and_counted():
    found = agreement([*SCORES, None, 5.0, math.nan], [*LABELS, 1, None, 1])
    assert (found["n"], found["left_out"]) == (5, 3)
    assert found["kendall"] == agreement(SCORES, LABELS)["kendall"]


@pytest.mark.parametrize(
    ("scores", "labels", "reason"),
    [
        ([0.0, 0.0], [0, 1], "every score is 0"),
        ([0.0, 1.0], [True, True], "every label is 1"),
        ([], [], "no rows"),
        ([None], [1], "no rows"),
    ],
)
def test_what_cannot_be_had_says_why(scores, labels, reason):
    found = agreement(scores, labels)
    for figure in ("kendall", "pearson", "auc", "accuracy"):
        assert found[figure] == {"value": None, "reason": reason}
    assert found["right_if"] is None


def test_grades_need_to_be_told_where_right_begins():
    scores, grades = [0.1, 0.4, 0.6, 0.9], [1, 2, 4, 5]
    found = agreement(scores, grades)
    assert value(found, "kendall") == 1.0
    assert "not just 0 and 1" in found["auc"]["reason"]
    found = agreement(scores, grades, right_from=3)
    assert (value(found, "auc"), found["right_if"]) == (1.0, ">= 0.5")
    assert value(found, "kendall") == 1.0  # of the grades, not of right and wrong
    # Two grades are not right and wrong either.
    assert value(agreement(scores, [3, 3, 4, 4]), "auc") is None
    found = agreement(scores, grades, right_from=9)
    assert found["accuracy"]["reason"] == "all labels are on one side"


def test_an_interval_that_no_resample_has():
    found = agreement([0.1, 0.9], [0, 1], groups=["a", "a"], num_resamples=0)
    assert found["kendall"] == {"value": 1.0, "low": None, "high": None}


def test_rows_without_a_group_are_groups_of_their_own():
    scores, labels = correlated(40)
    rows = [{"m": s, "ok": y, "q": "x"} for s, y in zip(scores, labels, strict=True)]
    for row in rows[1:]:
        row["q"] = None
    del rows[-1]["q"]
    assert agreement_table(rows, "ok", group="q")["all"] == agreement_table(rows, "ok")["all"]


ROWS = [
    {"id": "a", "kind": "who", "human": True, "scores": {"f1": 0.9, "match": 0}},
    {"id": "b", "kind": "who", "human": False, "scores": {"f1": 0.2, "match": 0}},
    {"id": "c", "kind": "when", "human": True, "scores": {"f1": None, "match": 0}},
    {"id": "d", "kind": "when", "human": True, "scores": {"f1": 0.8, "match": 0}},
]


def test_table_of_rows():
    report = agreement_table(ROWS, "human", by="kind", num_resamples=20)
    assert list(report["all"]) == ["f1", "match"]
    assert report["all"]["f1"]["n"] == 3 and report["all"]["f1"]["left_out"] == 1
    assert value(report["parts"]["who"]["f1"], "kendall") == 1.0
    assert report["parts"]["when"]["match"]["kendall"]["reason"] == "every score is 0"
    text = format_agreement(report)
    assert "kind: when" in text and "- match: every score is 0 (Kendall tau-b, Pearson r" in text
    line = next(line for line in text.splitlines() if line.startswith("match"))
    assert line.split() == ["match", "-", "-", "-", "-", "-", "4", "0"]


def test_columns_need_not_be_nested():
    rows = [{"f1": 0.9, "name": "x", "q": 1, "ok": 1}, {"f1": 0.1, "name": "y", "q": 2, "ok": 0}]
    assert list(agreement_table(rows, "ok", group="q")["all"]) == ["f1"]
    assert list(agreement_table(rows, "ok", metrics=["q"])["all"]) == ["q"]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (ROWS, {"label": "humen"}, "f: no column 'humen' in any row; did you mean 'human'?"),
        (ROWS, {"metrics": ["wer"]}, "f: no column 'wer' in any row; it has f1, match, id, kind,"),
        (ROWS, {"metrics": ["kind"]}, "f: row 1: 'kind' is 'who'; it has to be a number, true or"),
        (ROWS, {"by": "kinds"}, "f: no column 'kinds' in any row; did you mean 'kind'?"),
        (ROWS, {"group": "q"}, "f: no column 'q' in any row"),
        ([{"human": 1}], {}, "f: no column of numbers beside 'human'"),
        ([], {}, "f: no rows"),
    ],
)
def test_wrong_files_are_refused_in_one_line(rows, options, message):
    with pytest.raises(InputError) as error:
        agreement_table(rows, **({"label": "human", "where": "f"} | options))
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
