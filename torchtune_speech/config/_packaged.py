"""Where the packaged recipes, configs and studies are, in a plain and in an editable install."""

import importlib.metadata
from pathlib import Path

from torchtune_speech.errors import InputError, did_you_mean

_PACKAGE = Path(__file__).parents[1]


def _source_root() -> Path | None:
    """Returns the root of the source tree in an editable install, else None.

    A wheel carries the configs inside the package; the source tree beside it. Looking for a folder
    `recipes` would not tell them apart: torchtune installs one in site-packages.
    """
    return None if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent


def _configs_dir() -> Path:
    return (_source_root() or _PACKAGE) / "configs"


def _studies_dir() -> Path:
    return (_source_root() or _PACKAGE) / "studies"


def _recipes() -> dict[str, Path]:
    root = _source_root()
    if root is not None:
        return {path.stem: path for path in sorted((root / "recipes").glob("*.py"))}
    files = importlib.metadata.files("torchtune-speech") or []
    top_level = sorted(file for file in files if len(file.parts) == 1 and file.suffix == ".py")
    return {file.stem: Path(str(file.locate())) for file in top_level}


def recipe_names() -> list[str]:
    """Returns the names of the installed recipes, as `tune run` takes them."""
    return list(_recipes())


def recipe_path(name: str) -> Path:
    """Returns the file of an installed recipe.

    Args:
        name: The recipe's name, with or without `.py`.

    Raises:
        InputError: When there is no such recipe, naming the nearest.
    """
    recipes = _recipes()
    path = recipes.get(name.removesuffix(".py"))
    if path is None:
        raise InputError(f"{name}: no such recipe{did_you_mean(name, recipes) or _SEE_LIST}")
    return path


def config_names(recipe: str | None = None) -> dict[str, str]:
    """Returns the packaged configs and what each is for.

    Args:
        recipe: Only the configs for this recipe; None for all.

    Returns:
        Config name (`nano/projector`) -> description, from the file's first line, which reads
        `# Recipe: NAME - description`.
    """
    root = _configs_dir()
    names = {}
    for path in sorted(root.rglob("*.yaml")):
        target, description = config_header(path)
        if recipe in (None, target):
            names[path.relative_to(root).with_suffix("").as_posix()] = description
    return names


def config_header(path: Path) -> tuple[str, str]:
    """Returns the recipe a config is for and its description, both from its first line.

    Args:
        path: A YAML file that begins with `# Recipe: NAME - description`.

    Returns:
        `(recipe, description)`; both empty when the line is not there.
    """
    with open(path, encoding="utf-8") as file:
        first = file.readline().strip()
    if not first.startswith("# Recipe:"):
        return "", ""
    recipe, _, description = first.removeprefix("# Recipe:").partition(" - ")
    return recipe.strip(), description.strip()


def config_path(name: str) -> Path:
    """Returns the file of a packaged config.

    Args:
        name: The config's name, such as `nano/projector`, with or without `.yaml`.

    Raises:
        InputError: When there is no such config, naming the nearest.
    """
    stem = name.removesuffix(".yaml")
    path = _configs_dir() / f"{stem}.yaml"
    if stem not in config_names():
        hint = did_you_mean(stem, config_names()) or _SEE_LIST
        raise InputError(f"{name}: neither a file nor a packaged config{hint}")
    return path


def study_names() -> list[str]:
    """Returns the names of the packaged studies."""
    return sorted(path.stem for path in _studies_dir().glob("*.yaml"))


def study_path(name: str) -> Path:
    """Returns the file of a packaged study.

    Args:
        name: The study's name, such as `fusion_steps`, with or without `.yaml`.

    Raises:
        InputError: When there is no such study, naming the nearest.
    """
    stem = name.removesuffix(".yaml")
    if stem not in study_names():
        hint = did_you_mean(stem, study_names()) or "; `torchtune-speech study` lists them"
        raise InputError(f"{name}: neither a file nor a packaged study{hint}")
    return _studies_dir() / f"{stem}.yaml"


_SEE_LIST = "; `torchtune-speech ls` lists them"
