import shlex
import sys
import types

import numpy as np
import pytest
import soundfile

from torchtune_speech.cli import main
from torchtune_speech.files import read_json, read_jsonl, write_jsonl


@pytest.fixture
def command(world, capsys):
    """Runs a command line in this process; returns (exit code, stdout, stderr)."""

    def run(line):
        try:
            code = main(shlex.split(line))
        except SystemExit as exit_:
            code = exit_.code or 0
        return code, *capsys.readouterr()

    return run


def test_ls_lists_recipes_with_their_configs(command, world):
    (world / "recipes" / "other.py").write_text("")
    code, out, _ = command("ls")
    assert code == 0
    header, greet, other = out.splitlines()
    assert header.split() == ["RECIPE", "CONFIG", "FOR"]
    assert greet.split() == ["greet", "small/greet", "says", "hello"]
    assert other.split()[:2] == ["other", "-"]
    assert command("ls greet")[1].splitlines() == [header, greet]
    assert command("ls gret")[2] == "error: gret: no such recipe; did you mean 'greet'?\n"


def test_path(command, world):
    assert command("path greet")[1] == f"{world}/recipes/greet.py\n"
    assert command("path small/greet.yaml")[1] == f"{world}/configs/small/greet.yaml\n"
    code, out, err = command("path small/gret")
    assert (code, out) == (1, "") and "did you mean 'small/greet'?" in err


def test_cp_config(command, world, tmp_path):
    folder = tmp_path / "elsewhere"
    code, out, err = command("cp small/greet new/my")
    assert (code, err) == (0, "")
    assert "tune run greet --config new/my.yaml" in out
    original = (world / "configs" / "small" / "greet.yaml").read_text()
    assert (folder / "new" / "my.yaml").read_text() == original
    (folder / "new" / "my.yaml").write_text("changed")
    code, out, err = command("cp small/greet new/my.yaml")
    assert (code, out) == (1, "") and "exists already" in err and "--force" in err
    assert (folder / "new" / "my.yaml").read_text() == "changed"
    assert command("cp --force small/greet new/my.yaml")[0] == 0
    assert (folder / "new" / "my.yaml").read_text() == original
    assert command("cp small/greet new")[0] == 0
    assert (folder / "new" / "greet.yaml").read_text() == original


def test_cp_recipe_says_how_to_run_it(command, tmp_path):
    _, out, err = command("cp greet my_greet.py")
    assert "run it with: tune run my_greet --config small/greet" in out and err == ""
    _, out, err = command("cp greet deep/er/my_greet")
    assert "run it with: cd deep/er && tune run my_greet --config small/greet" in out
    assert (tmp_path / "elsewhere" / "deep" / "er" / "my_greet.py").is_file()


def test_cp_recipe_wants_the_name_of_a_module(command, tmp_path):
    code, _, err = command("cp greet my.v2.py")
    assert code == 1 and "my.v2.py: no name of a module" in err
    assert not (tmp_path / "elsewhere" / "my.v2.py").exists()


def test_cp_recipe_warns_when_the_installed_one_would_run(command, world, monkeypatch):
    monkeypatch.syspath_prepend(world / "recipes")
    code, out, err = command("cp greet .")
    assert code == 0 and "run it with" in out
    assert err.startswith("warning: `tune run greet` runs the installed module")


def test_help_is_the_recipes_own(command):
    code, out, _ = command("help greet")
    assert code == 0 and "Greets somebody." in out and "whom to greet" in out


def test_verify_prints_problems(command, monkeypatch):
    stores = {"good": [], "bad": ["bad/shard-0: truncated", "bad/shard-1: missing"]}
    features = types.SimpleNamespace(verify_store=lambda path: stores[str(path)])
    monkeypatch.setitem(sys.modules, "torchtune_speech.features", features)
    assert command("verify good") == (0, "good: no problems\n", "")
    assert command("verify bad") == (1, "bad/shard-0: truncated\nbad/shard-1: missing\n", "")


def test_manifest_passes_its_options_on(command, tmp_path):
    folder = tmp_path / "talks"
    folder.mkdir()
    for name, text in {"a.txt": "hallo", "a.en.txt": "hello", "a.it.txt": "ciao"}.items():
        (folder / name).write_text(text)
    soundfile.write(folder / "a.wav", np.zeros(1600), 16000)
    code, _, err = command(
        f"manifest {folder} out.jsonl --source-lang de --target-langs en, --domain lab"
    )
    assert code == 0, err
    asr, st = read_jsonl("out.jsonl")
    assert (asr["source_lang"], asr["domain"]) == ("de", "lab")
    assert (st["target_lang"], st["target"]) == ("en", "hello")
    code, _, err = command("manifest nowhere out.jsonl")
    assert code == 1 and err.startswith("error: nowhere") and err.count("\n") == 1


def test_usage_errors_and_help(command):
    assert command("")[0] == 2
    assert command("sl")[0] == 2
    code, out, _ = command("--help")
    assert code == 0 and "examples:" in out
    assert command("--version")[1].startswith("torchtune-speech 0.")


def test_agreement_prints_a_table_and_writes_figures(command):
    lines = [
        {"q": i // 2, "kind": "who", "scores": {"f1": i / 20, "match": 0}, "human": i >= 10}
        for i in range(20)
    ]
    write_jsonl("scored.jsonl", lines)
    code, out, err = command(
        "agreement scored.jsonl --label human --metrics f1,match --by kind --group q "
        "--json out.json"
    )
    assert (code, err) == (0, "")
    title, header, f1, match, reason, _, part, *_ = out.splitlines()
    assert title == "all rows, against human (always the commoner label: accuracy 0.500)"
    assert header.split()[:3] == ["metric", "Kendall", "tau-b"]
    # 100 of 190 pairs are not tied in the label, and all of them agree.
    assert f1.split()[:2] == ["f1", "0.725"] and f1.split()[-4:] == [">=", "0.47", "20", "0"]
    assert match.split() == ["match", "-", "-", "-", "-", "-", "20", "0"]
    assert reason.startswith("- match: every score is 0") and part.startswith("kind: who")
    assert read_json("out.json")["all"]["f1"]["auc"]["value"] == 1.0
    code, out, err = command("agreement scored.jsonl --label humans")
    assert (code, out) == (1, "")
    assert err == ("error: scored.jsonl: no column 'humans' in any row; did you mean 'human'?\n")
    assert command("agreement scored.jsonl --label human --resamples 0")[0] == 1
    assert "Kendall tau-b" in command("agreement --help")[1]
