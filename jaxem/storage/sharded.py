"""Arrays that several devices or processes hold in parts, on disk through Orbax; its bytes are checked against our digests.

Orbax alone restores a flipped byte and casts to another dtype without a word.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxem.storage.archive import FileError
from jaxem.storage.atomic import write_bytes
from jaxem.storage.names import leaf_now


def require_orbax() -> Any:
    """The module; raises ImportError that says how to get it."""
    try:
        return importlib.import_module("orbax.checkpoint")
    except ImportError:
        raise ImportError('checkpoints of sharded state need orbax: pip install "jaxem[checkpoint]"') from None


def held_whole(x: Any) -> bool:
    """Whether this process holds the whole array."""
    return getattr(x, "is_fully_addressable", True) or x.is_fully_replicated


def _is_key(x: Any) -> bool:
    return jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key)


def wait_for_all(name: str) -> None:
    """Until every process has come here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def write(directory: Path, arrays: dict[str, Any]) -> dict[str, Any]:
    """Write arrays below `directory`, each process its own part, and their digests beside it.

    Returns:
        Those that Orbax does not take: random keys.
    """
    orbax = require_orbax()
    taken = {name: x for name, x in arrays.items() if not _is_key(x)}
    with orbax.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory.absolute(), taken, force=True)
        checkpointer.wait_until_finished()
    table = {name: [str(x.dtype), list(x.shape), _digests(x)] for name, x in taken.items()}
    write_bytes(_digest_path(directory, jax.process_index()), json.dumps(table).encode())
    wait_for_all(directory.name)
    return {name: x for name, x in arrays.items() if name not in taken}


def read(directory: Path, template: dict[str, Any]) -> dict[str, Any]:
    """Arrays by name, where those of `template` lie.

    Raises:
        FileError: for bytes, dtypes or shapes other than those written.
    """
    orbax = require_orbax()
    try:
        target, known = {}, {}
        for path in sorted(directory.parent.glob(_digest_path(directory, "*").name)):
            for name, (dtype, shape, digests) in json.loads(path.read_bytes()).items():
                known.setdefault(name, {}).update(digests)
                sharding = _sharding(template.get(leaf_now(name, template)))
                target[name] = jax.ShapeDtypeStruct(shape, np.dtype(dtype), sharding=sharding)
        with orbax.StandardCheckpointer() as checkpointer:
            restored = checkpointer.restore(directory.absolute(), target)
        for name, x in restored.items():
            _check(directory, name, _digests(x), known[name])
        return restored
    except FileError:
        raise
    except Exception as error:  # Orbax breaks in many ways
        raise FileError(f"{directory}: damaged ({type(error).__name__}: {error})") from error


def remove(directory: Path) -> None:
    """Remove what `write` wrote, if anything."""
    shutil.rmtree(directory, ignore_errors=True)
    for path in directory.parent.glob(_digest_path(directory, "*").name):
        path.unlink(missing_ok=True)


def _check(directory: Path, name: str, found: dict[str, str], written: dict[str, str]) -> None:
    if any(written.get(place, digest) != digest for place, digest in found.items()):
        raise FileError(f"{directory}: {name} is damaged: its bytes are not those that were written")
    if not found.keys() <= written.keys():
        warnings.warn(f"{directory}: {name} was cut otherwise when it was written; its bytes go unchecked", stacklevel=6)


def _sharding(like: Any) -> Any:
    return getattr(like, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])


def _digest_path(directory: Path, process: int | str) -> Path:
    return directory.with_name(f"{directory.name}-{process}.json")


def _digests(x: Any) -> dict[str, str]:
    """SHA-256 of each part that lies here, by its place in the whole."""
    parts = {str(_place(s.index, x.shape)): s.data for s in jax.numpy.asarray(x).addressable_shards}
    return {place: hashlib.sha256(np.ascontiguousarray(part).tobytes()).hexdigest() for place, part in parts.items()}


def _place(index: tuple[slice, ...], shape: tuple[int, ...]) -> list[tuple[int, int]]:
    return [s.indices(n)[:2] for s, n in zip(index, shape, strict=True)]
