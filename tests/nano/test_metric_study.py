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
    assert {row["target_lang"] for row in metric_study.study_rows(2, langs=["it"])} == {"it"}
    assert list(metric_study.study_rows(2, seed=1)) == [
        {key: row[key] for key in row if key != "scores"} for row in rows[:64]
    ]


def test_scores_by_hand(rows):
    exact = next(row for row in rows if row["kind"] == "exact")
    assert exact["scores"] == dict.fromkeys(metric_study.METRICS, 1.0)
    assert metric_study.length_ratio("four", "eighteen") == 0.5
    assert metric_study.length_ratio("eighteen", "four") == 0.5
    assert metric_study.length_ratio("", "") == 1.0
    assert metric_study.sentence_chrf("Seven.", "Seven.") == 1.0
    assert metric_study.sentence_chrf("Seven.", "xyz") == 0.0


def line(text, start):
    return next(line for line in text.splitlines() if line.strip().startswith(start)).split()


def test_table_of_kinds_by_hand():
    scores = {True: (0.5, 1.0), False: (0.0, 0.75)}
    rows = [
        {"kind": kind, "way": way, "right": right, "scores": {"m": score}}
        for kind, right in ANSWER_KINDS.items()
        for way, score in zip("ba" if kind == "paraphrase" else "cc", scores[right], strict=True)
    ]
    text = metric_study.format_kinds(rows, {"m": ">= 0.6"})
    assert line(text, "paraphrase") == ["paraphrase", "right", "0.75", "50%"]
    assert line(text, "a ") == ["a", "right", "1.00", "100%"]
    assert line(text, "b ") == ["b", "right", "0.50", "0%"]
    assert "\n  c" not in text  # the only way of its kind
    assert line(text, "negation") == ["negation", "wrong", "0.38", "50%"]
    below = metric_study.format_kinds(rows, {"m": "< 0.6"})
    assert line(below, "exact")[-1] == "50%" and line(below, "negation")[-1] == "50%"
    assert line(metric_study.format_kinds(rows, {"m": "< 0.1"}), "exact")[-1] == "0%"
    assert line(metric_study.format_kinds(rows, {"m": "never"}), "refusal")[-1] == "100%"
    assert line(metric_study.format_kinds(rows, {"m": "always"}), "refusal")[-1] == "0%"


def test_pairs_by_hand():
    scores = {"paraphrase": 0.5, "negation": 0.9, "refusal": 0.1, "truncated": 0.5}
    rows = [
        {"question_id": "q", "target_lang": lang, "kind": kind, "scores": {"m": score}}
        for lang in ("en", "de")
        for kind in ANSWER_KINDS
        for score in [scores.get(kind, 0.2 if lang == "en" else 0.8)]
    ]
    text = metric_study.format_pairs(rows)
    found = {kind: line(text, kind)[-1] for kind, right in ANSWER_KINDS.items() if not right}
    assert found == {
        "negation": "0.00",
        "refusal": "1.00",
        "truncated": "0.50",
        "wrong_entity": "0.50",
        "wrong_language": "0.50",
    }


def test_command_with_a_metric_of_ones_own(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(
        "def judged(rows):\n    return [None if row['kind'] == 'refusal' else row['right']"
        " for row in rows]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    words = ["--out", str(tmp_path / "out"), "--num-questions", "5"]
    assert metric_study.main([*words, "--metric", "judge=mine:judged"]) == 0
    out = capsys.readouterr().out
    assert "paraphrase against" in out and "target_lang: zh" in out
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
    with pytest.raises(SystemExit):
        metric_study.main(["--out", str(tmp_path / "out"), "--langs", "en,fr"])
    assert capsys.readouterr().err == "error: --langs: 'fr'; choose from en, de, it, zh\n"
    with pytest.raises(InputError, match="metric m: 1 scores of 2 rows"):
        metric_study.add_scores([{}, {}], {"m": lambda rows: [1.0]})
    assert not (tmp_path / "out").exists()
