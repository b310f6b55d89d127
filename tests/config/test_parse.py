import os
import runpy
import shutil
import subprocess
import sys

import pytest
from omegaconf import OmegaConf
from torch.distributed import TCPStore

from torchtune_speech.config import _errors, check_keys, config_names, one_line_errors, recipe_names
from torchtune_speech.errors import InputError


@pytest.fixture
def greet(world, monkeypatch, capsys):
    """Runs the recipe in this process; returns (exit code, stdout, stderr)."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["greet", *words])
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(str(world / "recipes" / "greet.py"), run_name="__main__")
        return exit_.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture
def copied(world, tmp_path):
    """A folder with copies of the recipe and the config under names of their own."""
    shutil.copy(world / "recipes" / "greet.py", tmp_path / "my_greet.py")
    shutil.copy(world / "configs" / "small" / "greet.yaml", tmp_path / "my.yaml")
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        ["--config", "small/greet"],
        ["--config", "small/greet.yaml"],
        ["--config=small/greet"],
        ["traceback=false", "--config", "small/greet"],
    ],
)
def test_packaged_config_by_name_from_any_folder(greet, words):
    assert greet(*words)[:2] == (0, "hello 'world'\n")


def test_existing_file_wins_over_packaged_name(greet, tmp_path):
    own = tmp_path / "elsewhere" / "small" / "greet.yaml"
    own.parent.mkdir()
    own.write_text("name: mine")
    assert greet("--config", "small/greet.yaml")[1] == "hello 'mine'\n"
    assert greet("--config", str(own))[1] == "hello 'mine'\n"
    # A folder of that name is no config.
    assert greet("--config", "small/greet")[1] == "hello 'world'\n"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("you", "'you'"),
        ("3e-4", "0.0003"),
        ("[a, b c]", "['a', 'b c']"),
        ("Translate to German: now", "'Translate to German: now'"),
        ("Is 1 + 1 = 2? #yes", "'Is 1 + 1 = 2? #yes'"),
        ("a=b.wav", "'a=b.wav'"),
        ('say "hi" \\ there', "'say \"hi\" \\\\ there'"),
        ("${model.a} ${fail}", "'1 None'"),
        ("", "None"),
        ("None", "None"),
    ],
)
def test_override_arrives_as_written(greet, value, expected):
    assert greet("--config", "small/greet", f"name={value}")[:2] == (0, f"hello {expected}\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "command line: no config; add --config NAME or PATH (`torchtune-speech ls`"),
        (["--config"], "command line: no config"),
        (["--config", "small/gret"], "did you mean 'small/greet'?"),
        (["--config", "../recipes/greet"], "neither a file nor a packaged config"),
        (["--config", "small/greet", "nam=x"], "unknown key 'nam'; did you mean 'name'?"),
        (["--config", "small/greet", "name"], "command line: "),
        (["--config", "small/greet", "--name=x"], "command line: "),
        (["--config", "small/greet", "~nothing"], "command line: "),
        (["--config", "small/greet", "name=${oops}"], "error: config: name: "),
        (["--config", "small/greet", "fail=input"], "error: train.jsonl:7: no 'target'; add it"),
        (["--config", "small/greet", "fail=file"], "error: nowhere/at_all.txt: No such file"),
        (["--config", "small/greet", "fail=config"], "error: config: model.nothing: "),
    ],
)
def test_user_error_is_one_line_with_exit_code_1(greet, words, message):
    code, out, err = greet(*words)
    assert (code, out) == (1, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: ???", "config: name: Missing mandatory value"),
        ("a: b: c", "own.yaml:1: not YAML"),
        ("a: 1\na: 2", "own.yaml:2: not YAML (found duplicate key a)"),
        ("- a", "not a config"),
        ("1: 2", "not a config"),
        ("config: 1", "'config' is taken"),
        ("a: ${", "error: "),
        ("a: é".encode("latin-1"), "UTF-8"),
    ],
)
def test_broken_config_file_is_one_line(greet, text, message):
    with open("own.yaml", "wb") as file:
        file.write(text if isinstance(text, bytes) else text.encode())
    code, _, err = greet("--config", "own.yaml")
    assert code == 1 and err.count("\n") == 1 and message in err


@pytest.mark.parametrize("fail", ["input", "file", "config"])
def test_traceback_on_request(greet, fail, monkeypatch):
    with pytest.raises((InputError, OSError, AttributeError)):
        greet("--config", "small/greet", f"fail={fail}", "traceback=true")
    monkeypatch.setenv("TORCHTUNE_SPEECH_TRACEBACK", "1")
    with pytest.raises((InputError, OSError, AttributeError)):
        greet("--config", "small/greet", f"fail={fail}")
    monkeypatch.setenv("TORCHTUNE_SPEECH_TRACEBACK", "0")
    assert greet("--config", "small/greet", f"fail={fail}")[0] == 1


def test_bugs_keep_their_traceback_and_exit_codes_pass(greet):
    with pytest.raises(ValueError, match="a bug"):
        greet("--config", "small/greet", "fail=bug")
    assert greet("--config", "small/greet", "fail=exit")[0] == 3
    assert greet("--config", "small/greet", "fail=interrupt") == (130, "", "interrupted\n")


@pytest.mark.parametrize("words", [["--help"], ["--config", "small/greet", "-h"]])
def test_help_shows_docstring_configs_and_keys(greet, words):
    code, out, _ = greet(*words)
    assert code == 0
    for text in ("tune run", "Greets somebody.\n\nUsed", "small/greet  says hello"):
        assert text in out
    assert "whom to greet" in out and "hello" not in out.replace("says hello", "")


def test_names_of_packaged_files(world):
    assert recipe_names() == ["greet"]
    assert config_names() == config_names("greet") == {"small/greet": "says hello"}
    assert config_names("other") == {}


def test_check_keys_names_all_unknown_keys():
    check_keys(OmegaConf.create({"a": 1, "traceback": True}), {"a": "", "b": ""})
    with pytest.raises(InputError, match="unknown keys 'aa', 'c'; did you mean 'aab'"):
        check_keys(OmegaConf.create({"aa": 1, "aab": 1, "c": 1}), ["aab"])
    with pytest.raises(InputError, match="unknown key 'zzz'; the recipe knows a, b"):
        check_keys({"zzz": 1}, ["b", "a"])


def test_copied_recipe_runs_under_another_name(copied, tune_run):
    done = tune_run("my_greet.py", "--config", "my.yaml", "name=a: b", cwd=copied)
    assert (done.returncode, done.stdout) == (0, "hello 'a: b'\n"), done.stderr


def test_two_processes_print_an_error_once(copied, tune_run):
    words = ["--nproc_per_node", 2, "my_greet", "--config", "my.yaml", "fail=input"]
    done = tune_run(*words, cwd=copied)
    assert done.returncode == 1
    assert done.stderr.count("error: train.jsonl:7") == 1
    # torchrun's own summary has a traceback, of torchrun.
    assert done.stderr.index("error: train.jsonl:7") < done.stderr.index("Traceback")
    assert "my_greet.py" not in done.stderr.replace("my_greet.py FAILED", "")


def test_any_process_may_claim_the_error_but_only_one(monkeypatch, capsys):
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    for attempt, rank in [("0", "3"), ("0", "0"), ("0", "1"), ("1", "2"), ("1", "3")]:
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
        monkeypatch.setenv("RANK", rank)
        _errors._print_once(f"attempt {attempt} rank {rank}")
    assert capsys.readouterr().err == "attempt 0 rank 3\nattempt 1 rank 2\n"


def test_rank_0_speaks_when_there_is_no_store(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1")
    for rank in "10":
        monkeypatch.setenv("RANK", rank)
        _errors._print_once(f"rank {rank}")
    assert capsys.readouterr().err == "rank 0\n"


@pytest.fixture
def broken_pipe():
    """The end to write to of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("line", "codes", "error"),
    [
        ("ls", {141}, []),
        ("study sigma --dry-run", {141}, []),
        ("study --help", {0, 141}, []),  # argparse may not tell
        ("help projector", {141}, []),
        ("ls projektor", {1}, ["error: projektor: no such recipe; did you mean 'projector'?"]),
    ],
)
def test_without_a_reader_of_stdout_it_ends_quietly(line, codes, error, unbuffered, broken_pipe):
    script = "import sys; from torchtune_speech.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", script, *line.split()],
        stdout=broken_pipe,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    )
    said = [text for text in done.stderr.splitlines() if "torchao" not in text]
    assert said == error and done.returncode in codes


def test_a_pipe_that_breaks_elsewhere_is_an_error(broken_pipe, capfd):
    for capture in (sys.stdout, None):  # with a file behind it, and closed
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as exit_:
            patch.setattr(sys, "stdout", capture)
            with one_line_errors():
                os.write(broken_pipe, b"x")
        assert exit_.value.code == 1
        assert capfd.readouterr().err == "error: [Errno 32] Broken pipe\n"
