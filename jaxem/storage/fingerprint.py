"""What a fit is of, in a few bytes: equal in another process for the same arguments, and only for the same."""

from __future__ import annotations

import hashlib
import sys
import types
from typing import Any

import jax
import numpy as np

from jaxem.pytree import PyTree
from jaxem.storage.names import first_path

#: Packages whose classes go by their paths: what they do is in their versions, and old checkpoints know no more of them.
BY_PATH = sys.stdlib_module_names | {"jaxem", "jax", "jaxlib", "numpy", "optax"}
#: Beginnings of names in a class that are about its text rather than what it does.
TEXT = ("__doc__", "__firstlineno__", "__static_attributes__", "__annot", "__conditional_annotations__")


def fingerprint(tree: PyTree) -> str:
    """SHA-256 of the structure and the leaves: of numbers their bytes, of functions their code and what they close over."""
    leaves, structure = jax.tree.flatten(tree)
    total = hashlib.sha256(described(structure).encode())
    for leaf in leaves:
        if callable(leaf):
            total.update(described(leaf).encode())
            continue
        if hasattr(leaf, "dtype") and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        # Of an array that other processes hold too, the part that lies here.
        for part in _parts(leaf):
            total.update(f"{part.dtype} {part.shape}".encode())
            total.update(np.ascontiguousarray(part).data)
    return total.hexdigest()


def _parts(leaf: Any) -> list[np.ndarray]:
    if getattr(leaf, "is_fully_addressable", True):
        return [np.asarray(leaf)]
    return [np.asarray(shard.data) for shard in leaf.addressable_shards]


def described(x: Any, within: tuple[int, ...] = ()) -> str:
    """Structure in words that name no address in memory.

    Classes and functions go by name, code and closures by value; so do the methods and defaults of a user's class.
    """
    if isinstance(x, str | int | float | complex | bool | bytes | type(None)):
        return repr(x)
    if isinstance(x, type) and (id(x) in within or _by_path(x)):
        return first_path(x)
    if id(x) in within:
        return "..."
    within = (*within, id(x))

    def each(items: Any) -> str:
        return ", ".join(described(item, within) for item in items)

    if isinstance(x, jax.tree_util.PyTreeDef):
        return f"{each(x.node_data() or ('*',))}({each(x.children())})"
    if isinstance(x, tuple | list):
        return f"({each(x)})"
    if isinstance(x, set | frozenset):
        return f"{{{', '.join(sorted(described(item, within) for item in x))}}}"
    if isinstance(x, dict):
        return f"{{{each(x.items())}}}"
    if isinstance(x, types.CodeType):
        return f"{x.co_code.hex()} {x.co_names} {each(x.co_consts)}"
    if isinstance(x, type):
        return f"{first_path(x)} {each(_members(x))} of {each(x.__bases__)}"
    if isinstance(x, property):
        return f"property {each((x.fget, x.fset, x.fdel))}"
    if isinstance(x, types.ModuleType | types.BuiltinFunctionType):
        return f"{getattr(x, '__module__', '')}.{getattr(x, '__qualname__', x.__name__)}"
    if isinstance(x, types.MethodType):
        return f"{described(x.__func__, within)} of {described(x.__self__, within)}"
    if hasattr(x, "__wrapped__"):
        return described(x.__wrapped__, within)
    if isinstance(x, types.FunctionType):
        cells = [cell.cell_contents for cell in x.__closure__ or () if cell != types.CellType()]  # some are still empty
        return f"{x.__module__}.{x.__qualname__} {each((x.__code__, x.__defaults__, x.__kwdefaults__, cells))}"
    if isinstance(x, np.ndarray | np.generic | jax.Array) or not jax.tree_util.all_leaves([x]):
        return fingerprint(x)
    if hasattr(x, "__dict__"):
        return f"{described(type(x), within)} {described(vars(x), within)}"
    return described(type(x), within)


def _by_path(cls: type) -> bool:
    return str(cls.__module__).split(".")[0] in BY_PATH


def _members(cls: type) -> list[tuple[str, Any]]:
    """What a class defines itself, by name."""
    return sorted((name, x) for name, x in vars(cls).items() if not name.startswith(TEXT))
