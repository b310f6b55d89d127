"""Which projections of attention get LoRA."""

from collections.abc import Sequence
from typing import Any

from torchtune.modules.peft import LORA_ATTN_MODULES

from torchtune_speech.errors import InputError

ALL_ATTN_MODULES: tuple[LORA_ATTN_MODULES, ...] = ("q_proj", "k_proj", "v_proj", "output_proj")


def check_lora_modules(names: Any) -> None:
    """Refuse names of projections that torchtune would pass over.

    Args:
        names: what is to get LoRA.

    Raises:
        InputError: naming the first that is none.
    """
    known = ", ".join(ALL_ATTN_MODULES)
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise InputError(f"model.lora_attn_modules: {names!r}; give a list of {known}")
    for name in names:
        if name not in ALL_ATTN_MODULES:
            hint = "output_proj" if name == "o_proj" else known
            raise InputError(f"model.lora_attn_modules: {name!r} is unknown; use {hint}")
