"""Checkpoints: a pytree of arrays on disk, the last few kept, checked to the last bit when it comes back."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.numerics.leaves import leaf_names
from jaxem.pytree import PyTree
from jaxem.storage import archive, sharded
from jaxem.storage.archive import FileError
from jaxem.storage.atomic import checked_folder
from jaxem.storage.names import leaf_now


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Where and how often to save a run, so that the same call made again goes on from there.

    A resumed run ends, on the CPU, with the very bits of one that was never interrupted. Every checkpoint is
    written whole or not at all, and carries a digest of its bytes, names, dtypes and shapes.

    Attributes:
        directory: made where there is none. One run, one directory.
        every_seconds: time between checkpoints, at least; 0: as often as the host looks.
        keep: so many of the last are kept.
        backend: "npz", one file; "orbax", each process its own part of sharded arrays (needs
            pip install "jaxem[checkpoint]"); "auto": orbax for what no single process holds whole.
    """

    directory: str | Path
    every_seconds: float = 30.0
    keep: int = 2
    backend: str = "auto"

    def __post_init__(self) -> None:
        if not float(self.every_seconds) >= 0:
            raise ValueError(f"Checkpoint: every_seconds must be a non-negative number; got {self.every_seconds!r}")
        if isinstance(self.keep, bool) or not isinstance(self.keep, int) or self.keep < 1:
            raise ValueError(f"Checkpoint: keep must be an integer of at least 1; got {self.keep!r}")
        if self.backend not in ("auto", "npz", "orbax"):
            raise ValueError(f"Checkpoint: backend must be 'auto', 'npz' or 'orbax'; got {self.backend!r}")
        if self.backend == "orbax":
            sharded.require_orbax()

    def prepare(self) -> None:
        """Make the directory, and see that it can be written to; raises OSError, which says so."""
        try:
            checked_folder(self.directory)
        except OSError as error:
            reason = error.strerror or error
            raise type(error)(
                error.errno, f"checkpoint: its directory cannot be written to: {reason}", str(self.directory)
            ) from error

    def paths(self) -> list[Path]:
        """The checkpoints there are, oldest first."""
        found = [path for path in Path(self.directory).glob("checkpoint-*.npz") if _number(path)]
        return sorted(found, key=_number)

    def save(self, state: PyTree, about: dict[str, Any] | None = None) -> Path:
        """Write a checkpoint and remove those beyond the last `keep`.

        Args:
            state: pytree of arrays, typed random keys among them.
            about: what JSON can hold; `restore` hands it back.
        """
        arrays = dict(zip(leaf_names(state), jax.tree.leaves(state), strict=True))
        if len(arrays) < len(jax.tree.leaves(state)):
            raise ValueError("state has two leaves of one name, such as {'a.b': ...} beside {'a': {'b': ...}}")
        directory = Path(self.directory)
        directory.mkdir(parents=True, exist_ok=True)
        paths = self.paths()
        path = directory / f"checkpoint-{_number(paths[-1]) + 1 if paths else 1:08d}.npz"
        # Of several processes one writes what all hold, once all have seen what is there.
        several = not all(getattr(x, "is_fully_addressable", True) for x in arrays.values())
        if several:
            sharded.wait_for_all(f"before {path.name}")
        if self.backend == "orbax" or (self.backend == "auto" and not all(map(sharded.held_whole, arrays.values()))):
            arrays = sharded.write(path.with_suffix(".orbax"), arrays)
            about = {**(about or {}), "sharded": True}
        if not several or jax.process_index() == 0:
            archive.write(path, "checkpoint", about or {}, arrays)
            for old in paths[: max(0, len(paths) + 1 - self.keep)]:
                old.unlink(missing_ok=True)
                sharded.remove(old.with_suffix(".orbax"))
        if several:
            sharded.wait_for_all(path.name)
        return path

    def about(self) -> dict[str, Any] | None:
        """What the last sound checkpoint says of itself, or None where there is none."""
        return self._last_sound(lambda path: archive.read(path, "checkpoint")[0])

    def restore(self, template: PyTree) -> tuple[dict[str, Any], PyTree] | None:
        """What the last sound checkpoint says of itself, and its state; a damaged one is passed over with a warning.

        Args:
            template: pytree of arrays or `jax.ShapeDtypeStruct`s in the structure, shapes and dtypes of what was
                saved; arrays go where its own lie. Or a function that makes one from what was saved as `about`.

        Returns:
            None where there is no checkpoint.

        Raises:
            FileError: where all checkpoints are damaged, or hold another structure, shape or dtype.
        """

        def one(path: Path) -> tuple[dict[str, Any], PyTree]:
            about, arrays = archive.read(path, "checkpoint")
            like = template(about) if callable(template) else template
            if "sharded" in about:
                here = dict(zip(leaf_names(like), jax.tree.leaves(like), strict=True))
                arrays.update(sharded.read(path.with_suffix(".orbax"), here))
            return about, _filled(path, like, arrays)

        return self._last_sound(one)

    def _last_sound(self, read: Callable[[Path], Any]) -> Any:
        paths = self.paths()
        for path in reversed(paths):
            try:
                return read(path)
            except FileError as error:
                if path == paths[0]:
                    raise
                warnings.warn(f"{error}; going back to the checkpoint before it", stacklevel=3)
        return None


def as_checkpoint(checkpoint: Any) -> Checkpoint | None:
    """What `fit` takes as its `checkpoint`; raises TypeError for what is neither Checkpoint nor path."""
    if isinstance(checkpoint, str | Path):
        return Checkpoint(checkpoint)
    if not isinstance(checkpoint, Checkpoint | None):
        raise TypeError(f"checkpoint must be a jaxem.Checkpoint or a path; got {type(checkpoint).__name__}")
    return checkpoint


def _number(path: Path) -> int:
    match = re.fullmatch(r"checkpoint-(\d+)", path.stem)
    return int(match[1]) if match else 0


def _filled(path: Path, template: PyTree, arrays: dict[str, Any]) -> PyTree:
    """The arrays in the template's structure; raises FileError unless names, shapes and dtypes are the template's."""
    names, leaves = leaf_names(template), jax.tree.leaves(template)
    arrays = {leaf_now(name, names): x for name, x in arrays.items()}
    # What a stopping rule remembers begins anew where an earlier version remembered nothing.
    anew = {name: x for name, x in zip(names, leaves, strict=True) if ".seen." in name and isinstance(x, jax.Array)}
    arrays = (anew if not any(".seen." in name for name in arrays) else {}) | arrays
    if set(names) != set(arrays):
        odd = sorted(set(names) ^ set(arrays))
        raise FileError(f"{path}: of another structure; not in both: {', '.join(odd[:5])}")
    filled = []
    for name, like in zip(names, leaves, strict=True):
        x = arrays[name]
        if x.shape != np.shape(like) or x.dtype != like.dtype:
            raise FileError(f"{path}: {name} must be {like.dtype}{list(np.shape(like))}; got {x.dtype}{list(x.shape)}")
        # A copy: what is restored may be donated, and a file's buffer must not be.
        x = x if isinstance(x, jax.Array) else jnp.array(x)
        sharding = getattr(like, "sharding", None)
        filled.append(x if sharding is None or x.sharding == sharding else _laid(x, sharding))
    return jax.tree.unflatten(jax.tree.structure(template), filled)


def _laid(x: jax.Array, sharding: Any) -> jax.Array:
    """`x`, which this process holds whole, over devices that may be other processes' too."""
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    # `device_put` would compare the processes' values, to which NaN is never equal.
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])
