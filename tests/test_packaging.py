"""What a plain install holds, and that `tune run` finds it from any folder."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory, greet_sources):
    """A wheel of the sources with the throwaway recipe added."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("torchtune_speech", "recipes", "configs", "studies"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, tree)
    for path, text in greet_sources.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text)
    (tree / "recipes" / "notes.txt").write_text("not to be shipped")
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", tree / "dist", tree)
    (built,) = (tree / "dist").glob("*.whl")
    return built


def pip(*words):
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_wheel_has_recipes_at_the_root_and_configs_inside(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    recipes = {path.name for path in (ROOT / "recipes").glob("*.py")} | {"greet.py"}
    top_level = {name for name in names if "/" not in name}
    assert top_level == recipes
    configs = (ROOT / "configs").rglob("*.yaml")
    assert {f"torchtune_speech/{path.relative_to(ROOT)}" for path in configs} <= names
    studies = {name for name in names if name.startswith("torchtune_speech/studies/")}
    assert studies == {
        f"torchtune_speech/studies/{p.name}" for p in (ROOT / "studies").glob("*.yaml")
    }
    sources = (ROOT / "torchtune_speech").rglob("*")
    shipped = {str(p.relative_to(ROOT)) for p in sources if p.suffix in (".py", ".yaml", ".html")}
    assert shipped <= names
    folders = {name.split("/")[0] for name in names - top_level}
    assert len(folders) == 2, "the package and its metadata, nothing else"


def test_plain_install_runs_by_name_from_any_folder(wheel, tmp_path, tune_run):
    site = tmp_path / "site"
    pip("install", "--no-deps", "--no-index", "--target", site, wheel)
    done = tune_run("greet", "--config", "small/greet", "name=you", cwd=tmp_path, path=[site])
    assert (done.returncode, done.stdout) == (0, "hello 'you'\n"), done.stderr
    listing = subprocess.run(
        [sys.executable, "-m", "torchtune_speech", "ls", "greet"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert "small/greet  says hello" in listing.stdout, listing.stderr
    listing = subprocess.run(
        [sys.executable, "-m", "torchtune_speech", "study"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert "fusion_steps " in listing.stdout, listing.stderr
