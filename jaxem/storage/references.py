"""What a function's code reads from beyond itself: globals, attributes of modules, and what it imports."""

from __future__ import annotations

import dis
import importlib
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

#: In place of what a function would look for in vain.
NOTHING = object()


def referenced(function: types.FunctionType, whole: Callable[[types.ModuleType], bool]) -> dict[str, Any]:
    """Values by the dotted names under which the function and those inside it read them, in the order of the names.

    Args:
        function: in Python.
        whole: of a module, whether it stands for all that is read from it.
    """
    found = {name: value for name, value in _reads(function.__code__, function.__globals__, whole) if value is not NOTHING}
    return dict(sorted(found.items()))


def _reads(code: types.CodeType, space: dict[str, Any], whole: Callable[[types.ModuleType], bool]) -> Iterator[tuple[str, Any]]:
    name, value, module = "", NOTHING, NOTHING
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_ATTR", "LOAD_METHOD") and isinstance(value, types.ModuleType) and not whole(value):
            name, value = f"{name}.{step.argval}", getattr(value, step.argval, NOTHING)
            continue
        if step.opname == "IMPORT_FROM" and isinstance(module, types.ModuleType) and not whole(module):
            itself = module if module.__name__.endswith(f".{step.argval}") else NOTHING  # import a.b as b
            yield f"{module.__name__}.{step.argval}", getattr(module, step.argval, itself)
            name = ""
            continue
        if name:
            yield name, value
        name, value = "", NOTHING
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            name, value = step.argval, space.get(step.argval, NOTHING)
        elif step.opname == "IMPORT_NAME":
            module = _imported(step.argval, space)
            name, value = step.argval, module
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _reads(constant, space, whole)


def _imported(name: str, space: dict[str, Any]) -> Any:
    """The module, as the function would import it; of relative imports what can be told."""
    for path in (name, f"{space.get('__package__')}.{name}".rstrip(".")):
        if path in sys.modules:
            return sys.modules[path]
    try:
        return importlib.import_module(name)
    except Exception:  # the function itself would fail, or never comes there
        return NOTHING
