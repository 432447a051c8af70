"""Frozen dataclasses that are pytrees: structure is static, numbers are leaves."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.core

PyTree = Any


def static(choices: Iterable[Any] | None = None, **kwargs: Any) -> Any:
    """A dataclass field that is structure, hashed by value, rather than a number.

    Args:
        choices: the values that it may have: others are refused when the struct is made. None: any.
        **kwargs: of `dataclasses.field`.
    """
    return dataclasses.field(metadata={"static": True, "choices": choices and tuple(choices)}, **kwargs)


def aside(*, default: Any = None) -> Any:
    """A dataclass field that is no part of the pytree: at its default in what `jit`, `vmap`, `jax.tree.map` make of it."""
    return dataclasses.field(default=default, compare=False, repr=False, metadata={"aside": True})


#: jaxem's own structs by name: all that a file may be rebuilt from.
STRUCTS: dict[str, type] = {}


def struct_name(cls: type) -> str:
    """The name by which `STRUCTS` knows a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


_Class = TypeVar("_Class", bound=type)


@dataclass_transform(frozen_default=True, field_specifiers=(static, aside))
def struct(cls: _Class) -> _Class:
    """Make `cls` a frozen dataclass and a pytree: fields made by `static` are structure, those not made `aside` leaves.

    Not `jax.tree_util.register_dataclass`: there the structures of two classes with the same fields compare
    equal (jax 0.10), and a jitted function may run the program compiled for the one on the other.
    """
    cls = dataclasses.dataclass(frozen=True)(cls)
    fields = [f for f in dataclasses.fields(cls) if f.init and not f.metadata.get("aside")]
    choices = {f.name: f.metadata["choices"] for f in fields if f.metadata.get("choices")}
    if choices:
        cls.__init__ = _choosing(cls.__init__, choices)
    meta = tuple(f.name for f in fields if f.metadata.get("static"))
    data = tuple(f.name for f in fields if not f.metadata.get("static"))
    keys = tuple(jax.tree_util.GetAttrKey(name) for name in data)

    def flatten(x: Any) -> tuple[tuple[Any, ...], Any]:
        return tuple(getattr(x, name) for name in data), (cls, *(getattr(x, name) for name in meta))

    def flatten_with_keys(x: Any) -> tuple[tuple[Any, ...], Any]:
        leaves, structure = flatten(x)
        return tuple(zip(keys, leaves, strict=True)), structure

    def unflatten(structure: Any, leaves: Any) -> Any:
        return cls(**dict(zip(meta, structure[1:], strict=True)), **dict(zip(data, leaves, strict=True)))

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    if cls.__module__.startswith("jaxem."):
        STRUCTS[struct_name(cls)] = cls
    return cls


def _choosing(init: Callable[..., None], choices: dict[str, tuple[Any, ...]]) -> Callable[..., None]:
    """An `__init__` that refuses other values of some static fields. Of leaves, which may be tracers, it knows nothing."""

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        for name, allowed in choices.items():
            if (value := getattr(self, name)) not in allowed:
                words = all(isinstance(choice, str) for choice in allowed)
                wanted = f"one of {', '.join(allowed)}" if words else " or ".join(map(repr, allowed))
                raise ValueError(f"{name} must be {wanted}; got {value!r}")

    return checked


def check_struct(x: Any, name: str) -> None:
    """Raise TypeError for what is no registered dataclass: jit would not take it, in words that help nobody."""
    leaves = jax.tree.leaves(x)
    if "__dataclass_fields__" not in type(x).__dict__ or (len(leaves) == 1 and leaves[0] is x):
        wanted = "must be a frozen dataclass registered as a pytree; decorate it with @jaxem.struct"
        raise TypeError(f"{name} class {type(x).__name__} {wanted}")
