"""Every key that a recipe reads is in its KEYS, and every key in KEYS is read."""

import ast
import re

import pytest

from torchtune_speech import config

# What a recipe may call its whole config; parts of it have longer names (cfg_optimizer).
_NAMES = {"cfg", "self.cfg", "self._cfg"}
_METHODS = set(dir(dict)) - {"get", "pop", "setdefault"}


def keys_read(source):
    """Returns the top-level config keys that a recipe's source reads or writes."""
    keys = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(
                func=ast.Attribute(value=whole, attr="get" | "pop" | "setdefault"),
                args=[ast.Constant(value=str(key)), *_],
            ):
                pass
            case ast.Call(args=[whole, ast.Constant(value=str(key)), *_]):
                pass  # getattr(cfg, "key"), or a helper of the recipe: _number(cfg, "key", 1)
            case ast.Attribute(value=whole, attr=key) if key not in (_METHODS | {"get", "pop"}):
                pass
            case ast.Subscript(value=whole, slice=ast.Constant(value=str(key))):
                pass
            case ast.Compare(
                left=ast.Constant(value=str(key)),
                ops=[ast.In() | ast.NotIn()],
                comparators=[whole],
            ):
                pass
            case _:
                continue
        if ast.unparse(whole) in _NAMES:
            keys.add(key)
    return keys


def keys_interpolated(recipe):
    """Returns the keys that configs of the recipe take into others, as in `${output_dir}/x`."""
    texts = (config.config_path(name).read_text() for name in config.config_names(recipe))
    return {key for text in texts for key in re.findall(r"\$\{(\w+)", text)}


def test_keys_read_finds_every_way_of_reading():
    source = """
def f(self, cfg, cfg_part):
    cfg.a, cfg["b"], cfg.get("c"), self._cfg.d, self.cfg.e.x, "f" in cfg, "g" not in self._cfg
    _number(cfg, "h", 1), cfg.i.get("x"), cfg_part.no, cfg.items(), other.cfg.no, cfg[no]
    cfg.k = cfg.pop("j")
"""
    assert keys_read(source) == set("abcdefghijk")


@pytest.mark.parametrize("name", config.recipe_names())
def test_keys_are_those_the_recipe_reads(name, recipe_module):
    keys = recipe_module(name).KEYS
    read = keys_read(config.recipe_path(name).read_text(encoding="utf-8"))
    assert read - set(keys) - {"traceback"} == set(), "read, but not in KEYS"
    assert set(keys) - read - keys_interpolated(name) == set(), "in KEYS, but never read"
    assert all(isinstance(text, str) and text and "\n" not in text for text in keys.values())


@pytest.mark.parametrize("name", config.recipe_names())
def test_recipe_has_a_docstring_and_runs_as_main(name, recipe_module):
    module = recipe_module(name)
    assert module.__doc__ and module.recipe_main.__wrapped__.__doc__
    source = config.recipe_path(name).read_text(encoding="utf-8")
    assert source.rstrip().endswith('if __name__ == "__main__":\n    sys.exit(recipe_main())')
