"""Config files by name, checked against what they configure."""

from torchtune_speech.config._errors import one_line_errors
from torchtune_speech.config._instantiate import instantiate, locate, signature_problem
from torchtune_speech.config._keys import check_keys
from torchtune_speech.config._packaged import (
    config_header,
    config_names,
    config_path,
    recipe_names,
    recipe_path,
    study_names,
    study_path,
)
from torchtune_speech.config._parse import parse

__all__ = [
    "check_keys",
    "config_header",
    "config_names",
    "config_path",
    "instantiate",
    "locate",
    "one_line_errors",
    "parse",
    "recipe_names",
    "recipe_path",
    "signature_problem",
    "study_names",
    "study_path",
]
