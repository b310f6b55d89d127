"""Objects from config nodes, with every argument checked before anything is built."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from torchtune_speech.errors import InputError, did_you_mean


def instantiate(node: DictConfig | Mapping[str, Any] | None, *args: Any, **kwargs: Any) -> Any:
    """Builds the object a config node describes.

    Like `torchtune.config.instantiate`, but nodes with `_component_` inside the node (in mappings
    and lists, at any depth) are built too, innermost first, the arguments are checked against the
    component's signature, and objects passed as keywords reach it untouched.

    Args:
        node: A mapping with `_component_`, the dotted path of a public class or function; its
            other fields are keyword arguments.
        *args: Positional arguments for the outermost component.
        **kwargs: Keyword arguments for it; they win over the node's fields.

    Returns:
        What the component returns; None when the node is None.

    Raises:
        InputError: When a component cannot be imported, or an argument is unknown or missing.

    Example:
        >>> model = instantiate(cfg.model, projector=projector)
    """
    if node is None:
        return None
    if isinstance(node, DictConfig):
        key = node._get_full_key(None) or "config"
        node = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    else:
        key = "config"
    if not isinstance(node, Mapping) or "_component_" not in node:
        raise InputError(f"{key}: has no _component_; name the class or function to build there")
    return _build(node, key, args, kwargs)


def _build(
    node: Mapping[str, Any], key: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    component = locate(node["_component_"], key)
    fields = {name: value for name, value in node.items() if name != "_component_"} | dict(kwargs)
    problem = signature_problem(component, args, fields)
    if problem:
        raise InputError(f"{key}: {node['_component_']} {problem}")
    # What the caller passes is complete already; only what the config says is to be built.
    fields = {
        name: value if name in kwargs else _build_nested(value, f"{key}.{name}")
        for name, value in fields.items()
    }
    return component(*args, **fields)


def _build_nested(value: Any, key: str) -> Any:
    if isinstance(value, (DictConfig, ListConfig)):
        value = OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
    if isinstance(value, Mapping):
        if "_component_" in value:
            return _build(value, key, (), {})
        return {name: _build_nested(item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, list):
        return [_build_nested(item, f"{key}[{index}]") for index, item in enumerate(value)]
    return value


def locate(dotted_path: Any, key: str = "config") -> Callable[..., Any]:
    """Imports a class or function by its dotted path.

    Args:
        dotted_path: Such as `torchtune_speech.models.transformer_projector`.
        key: The config key it was written under, for the error message.

    Returns:
        The class or function.

    Raises:
        InputError: When it cannot be imported or called, naming the nearest public name.
    """
    if not isinstance(dotted_path, str) or not all(dotted_path.split(".")):
        raise InputError(f"{key}._component_: {dotted_path!r}: no dotted path; write package.name")
    # As torchtune does, so that a module in the current folder can be named.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    found: Any = None
    path = ""
    for part in dotted_path.split("."):
        parent, path = path, f"{path}.{part}" if path else part
        if hasattr(found, part):
            found = getattr(found, part)
            continue
        if found is None or inspect.ismodule(found):
            try:
                found = importlib.import_module(path)
                continue
            except ModuleNotFoundError as error:
                if error.name != path:
                    raise _cannot_import(dotted_path, key, error) from error
            except ImportError as error:
                raise _cannot_import(dotted_path, key, error) from error
        if not parent:
            raise InputError(f"{key}._component_: {dotted_path}: there is no module {path!r}")
        public = [name for name in dir(found) if not name.startswith("_")]
        hint = did_you_mean(part, public)
        raise InputError(f"{key}._component_: {dotted_path}: {parent} has no {part!r}{hint}")
    if not callable(found):
        raise InputError(f"{key}._component_: {dotted_path} is no class or function")
    return found


def _cannot_import(dotted_path: str, key: str, error: ImportError) -> InputError:
    return InputError(f"{key}._component_: {dotted_path} cannot be imported: {error}")


def signature_problem(
    component: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    may_miss: bool = False,
) -> str | None:
    """Says what is wrong with a call, without making it.

    Args:
        component: The class or function to be called.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        may_miss: Let required arguments be absent; the rest of them comes later.

    Returns:
        `"has no argument 'lrr'; did you mean 'lr'?"` or the like; None when the call is right or
        the component does not tell its signature.
    """
    try:
        signature = inspect.signature(component)
    except (TypeError, ValueError):
        return None
    parameters = signature.parameters.values()
    by_name = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for name in kwargs:
            if name not in by_name:
                near = did_you_mean(name, by_name)
                return f"has no argument {name!r}{near or '; it takes ' + ', '.join(by_name)}"
    try:
        bound = signature.bind_partial(*args, **kwargs)
    except TypeError as error:
        return f"cannot be called so: {error}"
    required = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    missing = [name for name in required if name not in bound.arguments]
    if missing and not may_miss:
        return f"needs {', '.join(repr(name) for name in missing)}; add it under this key"
    return None
