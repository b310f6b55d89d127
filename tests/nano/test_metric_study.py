import math

import pytest

from torchtune_speech.errors import InputError
from torchtune_speech.files import read_json, read_jsonl
from torchtune_speech.nano import metric_study
from torchtune_speech.nano._corrupt import ANSWER_KINDS


@pytest.fixture(scope="module")
def rows():
    rows = list(metric_study.study_rows(10, seed=1))
    metric_study.add_scores(rows, metric_study.METRICS)
    return rows


def test_every_question_in_every_language_has_an_answer_of_every_kind(rows):
    assert len(rows) == 10 * 4 * len(ANSWER_KINDS)
    assert len({(row["question_id"], row["target_lang"], row["kind"]) for row in rows}) == len(rows)
    kinds = [row["question_kind"] for row in rows[:: 4 * len(ANSWER_KINDS)]]
    assert kinds == ["who", "where", "when", "what", "how many"] * 2
    assert all(row["right"] is ANSWER_KINDS[row["kind"]] for row in rows)
    assert list(metric_study.study_rows(2, seed=1)) == [
        {key: row[key] for key in row if key != "scores"} for row in rows[:64]
    ]


def test_scores_by_hand(rows):
    exact = next(row for row in rows if row["kind"] == "exact")
    assert exact["scores"] == dict.fromkeys(metric_study.METRICS, 1.0)
    assert metric_study.length_ratio("four", "eighteen") == 0.5
    assert metric_study.length_ratio("eighteen", "four") == 0.5
    monkeypatch.syspath_prepend(tmp_path)
    words = ["--out", str(tmp_path / "out"), "--num-questions", "5"]
    assert metric_study.main([*words, "--metric", "judge=mine:judged"]) == 0
    out = capsys.readouterr().out
    assert line(out, "negation")[2:] != [] and "target_lang: zh" in out
    written = read_jsonl(tmp_path / "out" / "answers.jsonl")
    assert len(written) == 160
    assert set(written[0]["scores"]) == {*metric_study.METRICS, "judge"}
    judge = read_json(tmp_path / "out" / "agreement.json")["all"]["judge"]
    assert (judge["n"], judge["left_out"]) == (140, 20)
    for figure in ("kendall", "pearson", "auc", "accuracy"):
        assert math.isclose(judge[figure]["value"], 1.0)
    assert line(out, "refusal")[-1] == "-"


def test_wrong_metrics_are_refused(tmp_path, capsys):
    for option in ("judge", "judge=nowhere_at_all:f", "judge=math:nothing"):
        with pytest.raises(SystemExit):
            metric_study.main(["--out", str(tmp_path / "out"), "--metric", option])
        error = capsys.readouterr().err
        assert error.startswith("error: --metric") and error.count("\n") == 1
    with pytest.raises(InputError, match="metric m: 1 scores of 2 rows"):
        metric_study.add_scores([{}, {}], {"m": lambda rows: [1.0]})
    assert not (tmp_path / "out").exists()
