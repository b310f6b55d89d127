"""Means, intervals, table and plot, against numbers worked out by hand."""

import math
import random
import re
import statistics
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from torchtune_speech.errors import InputError
from torchtune_speech.files import read_json
from torchtune_speech.study import (
    Panel,
    draw_panels,
    load_study,
    mean_interval,
    run_study,
    student_t_quantile,
)
from torchtune_speech.study._plot import ticks

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def run(write_study, tree, launcher):
    """A function that runs the study; gives its results."""
    return lambda: run_study(load_study(write_study(tree)), Path("out"), launcher=launcher)


def test_quantiles_are_those_of_the_tables():
    # NIST/SEMATECH e-Handbook, table of Student's t, upper critical values.
    table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 30: 2.042, 100: 1.984}
    for degrees, value in table.items():
        assert student_t_quantile(0.975, degrees) == pytest.approx(value, abs=5e-4)
    assert student_t_quantile(0.995, 7) == pytest.approx(3.499, abs=5e-4)
    assert student_t_quantile(0.5, 3) == pytest.approx(0, abs=1e-12)
    normal = statistics.NormalDist().inv_cdf(0.975)
    assert student_t_quantile(0.975, 20_001) == pytest.approx(normal, abs=2e-4)


def test_quantiles_invert_the_integral_of_the_density():
    for degrees in (1, 2, 3, 8, 15):
        quantile = student_t_quantile(0.9, degrees)
        scale = math.gamma((degrees + 1) / 2) / (
            math.sqrt(degrees * math.pi) * math.gamma(degrees / 2)
        )
        width = quantile / 20_000
        middles = ((i + 0.5) * width for i in range(20_000))
        area = width * sum(scale * (1 + t * t / degrees) ** (-(degrees + 1) / 2) for t in middles)
        assert 0.5 + area == pytest.approx(0.9, abs=1e-7)


def test_intervals():
    assert mean_interval([0.25]) == (0.25, None)
    assert mean_interval([2.0, 2.0, 2.0]) == (2.0, (2.0, 2.0))
    mean, (low, high) = mean_interval([10.0, 11.0, 12.0])
    # s = 1, t = 4.30265 with two degrees of freedom, divided by the root of three
    assert mean == 11 and high - mean == pytest.approx(2.48414, abs=1e-5)
    assert mean - low == pytest.approx(high - mean)


def test_intervals_hold_the_mean_as_often_as_they_say():
    rng = random.Random(0)
    inside = 0
    for _ in range(2000):
        low, high = mean_interval([rng.gauss(3, 2) for _ in range(3)])[1]
        inside += low <= 3 <= high
    assert inside / 2000 == pytest.approx(0.95, abs=0.015)


def test_table_and_figures(run):
    results = run()
    # The fake WER is the number of steps plus the seed, BLEU is 20 and 40.
    first = results["variants"]["10"]
    assert first["scores"]["WER"]["values"] == [10, 11, 12]
    assert first["scores"]["BLEU"] == {"values": [30] * 3, "mean": 30, "interval": (30, 30)}
    assert first["training_steps"] == 5 + 10 and results["variants"]["20"]["training_steps"] == 25
    assert first["training_tokens"] == 1500 and first["training_seconds"] == 7.5
    assert Path("out/table.md").read_text().splitlines() == [
        "# How long?",
        "",
        "Configs: tiny. Seeds: 0, 1, 2 (6 of 6 runs done). Mean over the seeds and, in brackets, "
        "its 95% confidence interval (Student's t over the seeds; none where one seed was run, or "
        "where the seed changes nothing). It says how another seed might end, nothing of other "
        "test data.",
        "",
        "| steps of C | WER | BLEU | training steps | training tokens | training time (s) |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| 10 | 11.0 [8.5, 13.5] | 30.0 [30.0, 30.0] | 15 | 1,500 | 8 |",
        "| 20 | 21.0 [18.5, 23.5] | 30.0 [30.0, 30.0] | 25 | 2,500 | 12 |",
    ]
    written = read_json("out/study.json")
    assert written["runs"][3]["variant"] == "20" and written["runs"][3]["seed"] == 1
    assert written["runs"][3]["scores"] == {"WER": 21, "BLEU": 30}
    steps = written["runs"][3]["steps"]
    assert steps["C"]["folder"] == "out/20/seed_1/C" and steps["C"]["training_steps"] == 20
    assert steps["A"]["folder"] == "out/10/seed_0/A" and steps["score"]["seconds"] >= 0


def test_one_seed_has_no_interval(run, tree):
    tree["seeds"] = [0]
    assert run()["variants"]["10"]["scores"]["WER"] == {
        "values": [10.0],
        "mean": 10.0,
        "interval": None,
    }
    assert "| 10 | 10.0 | 30.0 |" in Path("out/table.md").read_text()


def test_seeds_that_change_nothing_are_one_run(run, tree):
    tree["pipeline"]["C"]["set"]["seed"] = 5
    score = run()["variants"]["10"]["scores"]["WER"]
    assert score == {"values": [15.0], "mean": 15.0, "interval": None}


def test_a_score_of_a_step_that_a_variant_leaves_out_is_empty(run, tree):
    tree["variants"]["fresh"] = {
        "steps": 3,
        "pipeline": {"A": None, "C": {"set": {"projector_checkpoint": None}}},
    }
    tree["scores"]["WER of A"] = "A.asr.wer"
    results = run()
    assert results["variants"]["fresh"]["scores"]["WER of A"]["mean"] is None
    assert results["variants"]["10"]["scores"]["WER of A"]["values"] == [5.0]
    assert "| fresh | 4.0 [1.5, 6.5] | 30.0 [30.0, 30.0] | - | 3 |" in (
        Path("out/table.md").read_text()
    )


def test_differences_are_taken_seed_by_seed(run, tree):
    # The fake WER of a variant that lets the seed count twice: 2 more than variant 10's at seed 0,
    # 3 at seed 1, 4 at seed 2.
    tree["pipeline"]["C"]["set"]["max_steps"] = "${variant.steps.${seed}}"
    tree["variants"] = {
        10: {"steps": {0: 10, 1: 10, 2: 10}},
        20: {"steps": {0: 12, 1: 13, 2: 14}},
        "fixed": {"steps": {0: 7, 1: 7, 2: 7}, "pipeline": {"C": {"set": {"seed": 3}}}},
    }
    tree["baseline"] = 10
    results = run()
    assert results["baseline"] == "10" and "differences" not in results["variants"]["10"]
    difference = results["variants"]["20"]["differences"]["WER"]
    assert difference["values"] == [2, 3, 4] and difference["mean"] == 3
    assert difference["interval"][0] == pytest.approx(3 - 2.48414, abs=1e-5)
    # Three seeds of the baseline against the one run of the other are three differences.
    assert results["variants"]["fixed"]["differences"]["WER"]["values"] == [0, -1, -2]
    lines = Path("out/table.md").read_text().splitlines()
    assert lines[-6].startswith("Differences from `10`, seed by seed.")
    assert lines[-4:] == [
        "| steps of C | WER | BLEU |",
        "| --- | ---: | ---: |",
        "| 20 | +3.0 [+0.5, +5.5] | +0.0 [+0.0, +0.0] |",
        "| fixed | -1.0 [-3.5, +1.5] | +0.0 [+0.0, +0.0] |",
    ]


def test_a_family_without_the_baseline_has_no_differences(run, tree):
    tree["baseline"] = "20"
    assert "differences" in run()["variants"]["10"]
    tree["families"]["tiny"]["without"] = ["20"]
    results = run()
    assert results["baseline"] is None and "differences" not in results["variants"]["10"]
    assert "Differences" not in Path("out/table.md").read_text()


def test_a_score_that_is_undefined_is_empty(run, tree):
    tree["scores"] |= {"COMET": "score.st.de.comet", "mean COMET": "score.st.*.comet"}
    scores = run()["variants"]["10"]["scores"]
    assert scores["COMET"] == scores["mean COMET"] == {"values": [], "mean": None, "interval": None}
    assert "| 30.0 [30.0, 30.0] | - | - | 15 |" in Path("out/table.md").read_text()


def test_a_score_that_is_not_there_is_named(run, tree):
    tree["scores"]["F1"] = "score.sqa.f1"
    with pytest.raises(
        InputError, match="score.sqa.f1: not in out/10/seed_0/score; it has asr, st"
    ):
        run()
    tree["scores"]["F1"] = "predict.sqa.f1"
    with pytest.raises(InputError, match="predict writes no scores; name a speech_eval step"):
        run()


def test_results_are_there_before_the_end(run, monkeypatch, tree):
    tree["variants"]["bad"] = {"steps": "many"}
    with pytest.raises(InputError):
        run()
    assert [row["variant"] for row in read_json("out/study.json")["runs"]] == ["10", "20"]
    assert "(2 of 9 runs done)" in Path("out/table.md").read_text()


def test_the_plot_shows_every_seed_and_names_its_axes(run):
    run()
    root = ElementTree.parse("out/plot.svg").getroot()
    assert len(root.findall(f".//{SVG}circle")) == 2 * 2 * 3
    texts = ["".join(node.itertext()) for node in root.iter(f"{SVG}text")]
    assert {"How long?", "steps of C", "WER", "BLEU", "10", "20"} <= set(texts)
    assert texts.count("steps of C") == 2


def panel(names, values, **changes):
    means, intervals = zip(*(mean_interval(v) if v else (None, None) for v in values), strict=True)
    fields = {"x_label": "x <&>", "y_label": "y", "names": names, "values": values}
    return Panel(**(fields | {"means": means, "intervals": intervals} | changes))


def circles(svg):
    nodes = ElementTree.fromstring(svg).iter(f"{SVG}circle")
    return [(float(node.get("cx")), float(node.get("cy"))) for node in nodes]


def test_points_lie_in_proportion_to_their_numbers():
    svg = draw_panels([panel(["0", "100", "2000"], [[1.0], [2.0], [4.0]])], "a < b")
    (x0, y0), (x1, y1), (x2, y2) = circles(svg)
    assert (x1 - x0) / (x2 - x0) == pytest.approx(0.05, abs=1e-3)
    assert (y0 - y1) / (y0 - y2) == pytest.approx(1 / 3, abs=2e-3)
    assert y0 > y2, "up is more"
    assert "<polyline" in svg
    mixed = draw_panels([panel(["0", "2000", "100"], [[1.0], [4.0], [2.0]])], "a < b")
    assert mixed == svg
    svg = draw_panels([panel(["a", "b", "c"], [[1.0], [2.0], [4.0]])], "t")
    (x0, _), (x1, _), (x2, _) = circles(svg)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11) and "<polyline" not in svg


@pytest.mark.parametrize(
    "values",
    [[[0.0]], [[5.0, 5.0]], [[1e-6, 2e-6], [3e-6]], [[-3.0, 1e6], []], [[], []]],
)
def test_any_values_can_be_drawn(values):
    names = [f"a rather long name {i}" for i in range(len(values))]
    svg = draw_panels([panel(names, values)] * 4, "t")
    assert len(circles(svg)) == 4 * sum(map(len, values))
    assert "nan" not in svg and all(30 <= y <= 2 * 300 for _, y in circles(svg))
    assert len(set(re.findall(r'clipPath id="(\w+)"', svg))) == 4


def test_long_titles_and_names_have_room():
    title = "How many encoder frames can be averaged into one?"
    root = ElementTree.fromstring(draw_panels([panel(["1", "2"], [[1.0], [2.0]])], title))
    assert int(root.get("width")) > 400
    names = [f"transformer-{i}" for i in range(8)]
    turned = ElementTree.fromstring(draw_panels([panel(names, [[1.0]] * 8)], "t"))
    assert int(turned.get("height")) > int(root.get("height"))
    texts = [n for n in turned.iter(f"{SVG}text") if n.text in names]
    assert len(texts) == 8 and all("rotate" in n.get("transform") for n in texts)


def test_ticks_are_round_and_inside():
    rng = random.Random(0)
    for _ in range(500):
        low = rng.uniform(-100, 100)
        high = low + 10 ** rng.uniform(-5, 5)
        found = ticks(low, high)
        assert 4 <= len(found) <= 11
        step = found[1] - found[0]
        assert found[0] >= low - 1e-6 * step and found[-1] <= high + 1e-6 * step
        mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
        assert min(abs(mantissa - m) for m in (1, 2, 5, 10)) < 1e-3
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
