import json

import pytest

from torchtune_speech.cli import main
from torchtune_speech.errors import InputError
from torchtune_speech.evaluation import compare, format_comparison, score
from torchtune_speech.files import read_json, write_jsonl

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def rows(right, task="asr", lang="en", count=40, **fields):
    """The first `right` of `count` two-word samples are right, of the others one word is wrong."""
    return [
        {
            "id": f"u{i}",
            "task": task,
            "target": f"word la{LETTERS[i % 26]}",
            "prediction": f"word la{LETTERS[i % 26]}" if i < right else "word wrong",
            "target_lang": lang,
            "domain": "even" if i % 2 == 0 else "odd",
        }
        | fields
        for i in range(count)
    ]


def by_score(comparison, **wanted):
    return {
        group["score"]: group
        for group in comparison["groups"]
        if all(group[key] == value for key, value in wanted.items())
    }


def test_identical_systems():
    both = rows(20) + rows(20, "st", "de") + rows(20, "sqa")
    comparison = compare(both, both)
    scores = [group["score"] for group in comparison["groups"]]
    assert scores[:5] == ["wer", "cer", "bleu", "chrf", "ter"]
    assert scores[5:] == ["accuracy", "f1", "containment", "answerable_accuracy"]
    for group in comparison["groups"]:
        assert group["a"] == group["b"] and group["difference"] == 0
        assert (group["interval"], group["p_value"]) == ([0, 0], 1)
        assert (group["significant"], group["better"]) == (False, None)
    assert comparison["samples"]["asr"] == {"b_better": [], "a_better": []}
    assert comparison["n"] == 120


def test_a_better_system_by_hand():
    a, b = rows(10), rows(34)
    found = by_score(compare(a, b))["wer"]
    assert (found["a"], found["b"], found["n"]) == (30 / 80, 6 / 80, 40)
    assert found["difference"] == -24 / 80
    # 24 of 40 samples lose one error in two words: 1.96 * sqrt(0.6 * 0.4 / 40) / 2 = 0.076.
    assert found["interval"] == pytest.approx([-0.376, -0.224], abs=0.02)
    assert found["p_value"] < 0.01 and found["significant"] and found["better"] == "b"
    back = by_score(compare(b, a))["wer"]
    assert back["better"] == "a" and back["p_value"] == found["p_value"]
    # Higher is better of the others.
    answers = by_score(compare(rows(10, "sqa"), rows(34, "sqa")))["accuracy"]
    assert answers["difference"] == pytest.approx(0.6) and answers["better"] == "b"


def test_as_good_on_other_samples():
    a = rows(20)
    b = [{**row, "prediction": other["prediction"]} for row, other in zip(a, a[::-1], strict=True)]
    b = [
        {**row, "prediction": row["target"] if i >= 20 else "word wrong"} for i, row in enumerate(b)
    ]
    found = by_score(compare(a, b))["wer"]
    assert found["difference"] == 0 and found["p_value"] > 0.9 and not found["significant"]


def test_scores_are_those_of_the_report():
    a = rows(10) + rows(15, "st", "de", source_lang="fr") + rows(25, "sqa", "zh")
    b = rows(12) + rows(35, "st", "de", source_lang="fr") + rows(5, "sqa", "zh")
    comparison = compare(a, b, normalizer="none")
    for side, system in (("a", a), ("b", b)):
        report = score(system, normalizer="none")
        for task, lang, group in (
            ("asr", "", report["asr"]),
            ("st", "de", report["st"]["de"]),
            ("sqa", "", report["sqa"]),
        ):
            for name, found in by_score(comparison, task=task, language=lang).items():
                assert found[side] == pytest.approx(group[name], abs=1e-4)


def test_rows_are_joined_by_task_and_id():
    a, b = rows(10) + rows(5, "sqa"), rows(34) + rows(30, "sqa")
    assert compare(a, b[::-1]) == compare(a, b)


def test_parts():
    a, b = rows(10), rows(34)
    b = [row if row["domain"] == "even" else {**row, "prediction": "word wrong"} for row in b]
    comparison = compare(a, b, by=["domain"])
    assert by_score(comparison, part="even")["wer"]["better"] == "b"
    assert by_score(comparison, part="odd")["wer"]["b"] == 0.5
    assert by_score(comparison, part="even")["wer"]["n"] == 20
    timed = [{**row, "duration_s": i} for i, row in enumerate(a)]
    parts = {group["part"] for group in compare(timed, b, by=["duration"])["groups"]}
    assert parts == {"", "0-5", "5-10", "10-20", "20-30", "30-"}
    with pytest.raises(InputError, match="unknown part 'speaker'; choose from domain, duration"):
        compare(a, b, by=["speaker"])


def test_languages_of_answers():
    a = rows(10, "sqa") + [{**row, "id": f"{row['id']}z"} for row in rows(10, "sqa", "zh")]
    b = rows(34, "sqa") + [{**row, "id": f"{row['id']}z"} for row in rows(10, "sqa", "zh")]
    comparison = compare(a, b)
    accuracies = [g for g in comparison["groups"] if g["score"] == "accuracy"]
    assert [g["language"] for g in accuracies] == ["", "en", "zh"]
    assert [g["significant"] for g in accuracies] == [True, True, False]


def test_samples_that_differ_most():
    a, b = rows(2, count=9), rows(7, count=9)
    a[0]["prediction"], b[0]["prediction"] = "word laa", "x y z"  # 0 -> 1.5
    a[1]["prediction"], b[1]["prediction"] = "word lab", "word"  # 0 -> 0.5
    a[4]["prediction"] = ""  # 1 -> 0, of the others 0.5 -> 0
    found = compare(a, b)["samples"]["asr"]
    assert found["a_better"] == [
        {"id": "u0", "score": "wer", "a": 0.0, "b": 1.5},
        {"id": "u1", "score": "wer", "a": 0.0, "b": 0.5},
    ]
    assert [sample["id"] for sample in found["b_better"]] == ["u4", "u2", "u3", "u5", "u6"]


def test_files_that_do_not_belong_together():
    a = rows(10)
    with pytest.raises(InputError, match=r"B: lacks 2 samples that A has \(first: task 'asr', id"):
        compare(a, a[:-2])
    with pytest.raises(InputError, match=r"^A: lacks 1 .* 'u0'\); .*--allow-missing"):
        compare(a[1:], a)
    with pytest.raises(InputError, match="new: another reference for task 'asr', id 'u0', than in"):
        compare(a, [{**a[0], "target": "x"}, *a[1:]], names=("old", "new"))
    with pytest.raises(InputError, match="A: task 'asr', id 'u0' comes twice"):
        compare([*a, a[0]], a)
    with pytest.raises(InputError, match="B: row 0 has no 'id'"):
        compare(a, [{k: v for k, v in a[0].items() if k != "id"}])
    with pytest.raises(InputError, match="B: id 'u0' has no 'target'"):
        compare(a, [{"id": "u0", "task": "asr", "prediction": "x"}])
    with pytest.raises(InputError, match="no sample of A"):
        compare(a, rows(3, "sqa"), allow_missing=True)
    shared = compare(a, a[1:-2], allow_missing=True)
    assert (shared["n"], shared["only_a"], shared["only_b"]) == (37, 3, 0)
    assert by_score(shared)["wer"]["n"] == 37
    assert "3 samples" in format_comparison(shared)


def test_table():
    lines = format_comparison(compare(rows(10), rows(34)), ("old", "new")).splitlines()
    assert lines[:3] == ["A: old", "B: new", ""]
    head, _, wer, cer = lines[3:7]
    assert head.split() == "task language score n A B B - A 95 % interval p".split()
    assert wer.split()[:7] == "asr all wer 40 0.3750 0.0750 -0.3000".split()
    assert wer.endswith("0.002  * B better") and cer.split()[2] == "cer"
    assert any("asr, B better by wer: u10 (0.5 -> 0), u11" in line for line in lines)
    part = format_comparison(compare(rows(10), rows(34), by=["domain"])).splitlines()[3]
    assert part.split()[0] == "part"


def test_command_line(tmp_path, capsys):
    write_jsonl(tmp_path / "a.jsonl", rows(10))
    write_jsonl(tmp_path / "b.jsonl", rows(34)[:-1])
    files = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    with pytest.raises(SystemExit) as error:
        main(["compare", *files])
    assert error.value.code == 1
    message = capsys.readouterr().err
    assert "b.jsonl: lacks 1 samples" in message and message.count("\n") == 1
    out = tmp_path / "out" / "comparison.json"
    options = ["--allow-missing", "--by", "domain", "--normalizer", "mms", "--json", str(out)]
    assert main(["compare", *files, *options]) == 0
    printed = capsys.readouterr().out
    assert "normalizer: mms" in printed and "* B better" in printed
    written = read_json(out)
    assert written["a"] == files[0] and written["only_a"] == 1
    expected = compare(rows(10), rows(34)[:-1], by=["domain"], normalizer="mms", allow_missing=True)
    assert json.loads(json.dumps(expected)) == {
        key: value for key, value in written.items() if key not in ("a", "b")
    }
    for line, cause in (
        (["compare", files[0], str(tmp_path / "c.jsonl")], "c.jsonl: no such file"),
        (["compare", *files, "--by", "speaker"], "by: unknown part 'speaker'"),
        (["compare", *files, "--allow-missing", "--normalizer", "wisper"], "did you mean"),
    ):
        with pytest.raises(SystemExit):
            main(line)
        assert cause in capsys.readouterr().err


def test_ter_can_be_left_out():
    both = rows(3, "st", "zh", count=5)
    assert "ter" in by_score(compare(both, both))
    assert "ter" not in by_score(compare(both, both, ter=False))


def test_scores_that_the_files_bring_along_are_compared():
    a = [row | {"scores": {"comet": 0.5}} for row in rows(20, "st", "de")]
    b = [row | {"scores": {"comet": 0.7}} for row in rows(20, "st", "de")]
    comet = by_score(compare(a, b, ter=False), task="st")["comet"]
    assert (comet["a"], comet["b"]) == (pytest.approx(0.5), pytest.approx(0.7))
    assert comet["p_value"] < 0.05


def test_samples_that_one_system_has_no_score_of_do_not_count():
    a, b = rows(0, "st", "de", count=30), rows(0, "st", "de", count=30)
    for index, row in enumerate(a):
        row["scores"] = {"comet": 0.9 if index < 10 else 0.3}
    for row in b[:10]:
        row["scores"] = {"comet": 0.9}
    found = by_score(compare(a, b))["comet"]
    assert (found["a"], found["b"], found["n"]) == (pytest.approx(0.9), pytest.approx(0.9), 10)
    assert found["better"] is None
