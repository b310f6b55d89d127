"""Every shipped config fits its recipe and what it configures, without running anything."""

import pytest
import torchtune.config
from omegaconf import OmegaConf

from torchtune_speech import config
from torchtune_speech.config import (
    check_keys,
    config_header,
    config_path,
    locate,
    signature_problem,
)


def components(node, key):
    """Yields (config key, mapping with `_component_`) for a node and all inside it."""
    if isinstance(node, dict):
        if "_component_" in node:
            yield key, node
        for name, value in node.items():
            yield from components(value, f"{key}.{name}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from components(value, f"{key}[{index}]")


def component_problems(cfg):
    """Returns what is wrong with the components of a config, one line each."""
    problems = []
    for key, node in components(OmegaConf.to_container(cfg, resolve=True), "config"):
        fields = {name: value for name, value in node.items() if name != "_component_"}
        component = locate(node["_component_"], key)
        # What the config leaves out, the recipe passes.
        if problem := signature_problem(component, (), fields, may_miss=True):
            problems.append(f"{key}: {node['_component_']} {problem}")
    return problems


def test_component_problems_finds_nested_ones():
    cfg = OmegaConf.create(
        "a: [{b: {_component_: torch.nn.Linear, in_featurs: 1}}, {_component_: torch.nn.ReLU}]"
    )
    (problem,) = component_problems(cfg)
    assert "config.a[0].b: torch.nn.Linear has no argument 'in_featurs'" in problem


@pytest.mark.parametrize("name", config.config_names())
def test_config_fits_its_recipe(name, recipe_module):
    path = config_path(name)
    recipe, description = config_header(path)
    assert recipe in config.recipe_names(), "the first line is `# Recipe: NAME - description`"
    assert description
    assert f"tune run {recipe} --config {name}" in path.read_text(encoding="utf-8")
    cfg = OmegaConf.load(path)
    check_keys(cfg, recipe_module(recipe).KEYS)
    assert component_problems(cfg) == []
    torchtune.config.validate(cfg)  # what `tune validate` runs
