"""What a fit is of, in a few bytes: equal in another process for the same arguments, and only for the same."""

from __future__ import annotations

import copyreg
import dataclasses
import functools
import hashlib
import sys
import threading
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxem.pytree import PyTree
from jaxem.storage.names import GAINED, first_path, name_of
from jaxem.storage.references import referenced

#: Packages whose classes go by their paths: what they do is in their versions, and old checkpoints know no more of them.
BY_PATH = sys.stdlib_module_names | {"jaxem", "jax", "jaxlib", "numpy", "optax"}
#: Beginnings of names in a class or a function that are about its text rather than what it does.
TEXT = (
    "__doc__", "__firstlineno__", "__static_attributes__", "__annot", "__conditional_annotations__", "__dataclass_",
    "__orig_bases__", "__parameters__", "__type_params__", "__signature__", "__text_signature__", "__slotnames__", "_abc_impl",
)  # fmt: skip
#: What holds no value of its own.
EMPTY = (types.GetSetDescriptorType, types.MemberDescriptorType, type(threading.Lock()), type(threading.RLock()))


class UnfollowedError(TypeError):
    """What a fingerprint cannot follow: its value may be another in another process, and nothing tells."""


def fingerprint(tree: PyTree) -> str:
    """SHA-256 of the structure and the leaves: of numbers their bytes, of functions their code and all that it reads.

    Raises:
        TypeError: for what cannot be followed; the message names it.
    """
    leaves, structure = jax.tree.flatten(tree)
    total = hashlib.sha256(_Description().of(structure).encode())
    for leaf in leaves:
        if callable(leaf) or (leaf if hasattr(leaf, "dtype") else np.asarray(leaf)).dtype == object:
            total.update(_Description().of(leaf).encode())
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


class _Description:
    """Structure in words that name no address in memory.

    Classes and functions go by name, code, closures and what they read, all by value; so do the methods and defaults of
    a user's class. Of what is installed, names and versions tell what it does.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[int, Any]] = {}  # functions and objects, kept so that no address comes again

    def of(self, x: Any, within: tuple[int, ...] = ()) -> str:
        """The words for `x`, inside the objects of these addresses."""
        if isinstance(x, str | int | float | complex | bool | bytes | type(None)):
            return repr(x)
        if isinstance(x, type) and (id(x) in within or id(x) in self._seen or _installed(x.__module__)):
            return first_path(x) + _version(x.__module__)
        if id(x) in within:
            return "..."
        within = (*within, id(x))

        def each(items: Iterable[Any]) -> str:
            return ", ".join(self.of(item, within) for item in items)

        if isinstance(x, jax.tree_util.PyTreeDef):
            return f"{each(x.node_data() or ('*',))}({each(_known_first(x))})"
        if isinstance(x, tuple | list):
            return f"({each(x)})"
        if isinstance(x, set | frozenset):
            return f"{{{', '.join(sorted(_Description().of(item, within) for item in x))}}}"
        if isinstance(x, Mapping):
            return f"{{{each(x.items())}}}"
        if isinstance(x, types.CodeType):
            return f"{x.co_code.hex()} {x.co_names} {each(x.co_consts)}"
        if isinstance(x, property):
            return f"property {each((x.fget, x.fset, x.fdel))}"
        if isinstance(x, types.ModuleType) and not _installed(x.__name__):
            own = {name: value for name, value in vars(x).items() if not name.startswith("__")}  # not how it was imported
            return f"{x.__name__} {each(_members(own))}"
        if isinstance(x, types.ModuleType | types.BuiltinFunctionType) and not isinstance(
            getattr(x, "__self__", None), Mapping | list | set | frozenset
        ):
            return f"{getattr(x, '__module__', '')}.{getattr(x, '__qualname__', x.__name__)}"
        if isinstance(x, types.MethodType):
            return f"{self.of(x.__func__, within)} of {self.of(x.__self__, within)}"
        if isinstance(x, np.ndarray | np.generic | jax.Array) or not jax.tree_util.all_leaves([x]):
            return fingerprint(x)
        if isinstance(x, EMPTY):
            return self.of(type(x), within)
        if id(x) in self._seen:
            return f"#{self._seen[id(x)][0]}"
        self._seen[id(x)] = len(self._seen), x
        if isinstance(x, type):
            return f"{first_path(x)} {each(_members(vars(x)))} of {each(x.__bases__)}"
        if isinstance(x, types.FunctionType):
            return self._function(x, within)
        return self._object(x, within)

    def _function(self, x: types.FunctionType, within: tuple[int, ...]) -> str:
        cells = [cell.cell_contents for cell in x.__closure__ or () if cell != types.CellType()]  # some are still empty
        words = self.of((x.__code__, x.__defaults__, x.__kwdefaults__, cells), within)[1:-1]
        words = f"{x.__module__}.{x.__qualname__} {words}"
        if _installed(x.__module__):
            return words + _version(x.__module__)
        read = referenced(x, lambda module: _installed(module.__name__))
        read |= {f".{name}": value for name, value in _members(vars(x)) if name != "__wrapped__"}  # which its closure holds
        for name, value in read.items():
            try:
                words += f", {name} {self.of(value, within)}"
            except UnfollowedError as error:
                raise UnfollowedError(f"{x.__qualname__} reads {name}: {error}") from error
        return words

    def _object(self, x: Any, within: tuple[int, ...]) -> str:
        """By what pickle would write of it."""
        cls = self.of(type(x), within)
        if isinstance(x, functools.partial):
            return f"{cls} {self.of((x.func, x.args, x.keywords), within)}"
        if hasattr(x, "__wrapped__"):
            module = str(getattr(x, "__module__", ""))
            if _installed(module):
                return f"{module}.{getattr(x, '__qualname__', '')}" + _version(module)
            return f"{cls} {self.of([item for item in _members(vars(x)) if item[0] not in NAMES], within)}"
        try:
            reduced = copyreg.dispatch_table.get(type(x))
            state = reduced(x) if reduced else x.__reduce_ex__(4)
        except Exception as error:
            if not getattr(x, "__dict__", None):
                raise UnfollowedError(
                    f"what a {type(x).__module__}.{type(x).__qualname__} holds cannot be told ({error})"
                ) from error
            state = vars(x)
        if isinstance(state, tuple) and len(state) > 2:  # items come one by one
            state = (*state[:3], *(None if items is None else list(items) for items in state[3:5]))
        return f"{cls} {self.of(state, within)}"


def _known_first(x: Any) -> list[Any]:
    """What is below a node, without the fields that its class gained later and that hold nothing: see `GAINED`."""
    cls, children = (x.node_data() or (None,))[0], x.children()
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)) or name_of(cls) not in GAINED:
        return children
    gained, fields = GAINED[name_of(cls)], dataclasses.fields(cls)
    names = [f.name for f in fields if f.init and not (f.metadata.get("static") or f.metadata.get("aside"))]
    pairs = zip(names, children, strict=True)
    return [child for name, child in pairs if name not in gained or child.num_leaves]


#: Of a wrapped function, what the function itself tells.
NAMES = ("__name__", "__qualname__", "__module__")


def _installed(module: str | None) -> bool:
    top = str(module).split(".")[0]
    file = getattr(sys.modules.get(top), "__file__", None)
    return top in BY_PATH or (file is not None and not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts))


def _version(module: str) -> str:
    top = module.split(".")[0]
    return "" if top in BY_PATH else f" {getattr(sys.modules.get(top), '__version__', '')}"


def _members(names: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What a class, a module or a function defines itself, by name."""
    return sorted((name, x) for name, x in names.items() if not name.startswith(TEXT))
