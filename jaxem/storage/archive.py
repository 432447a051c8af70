"""Arrays in one npz file beside a JSON header: written whole or not at all, and checked to the last bit when read.

Nothing is pickled and reading runs no code. The header tells the name, dtype and shape of every array; a SHA-256
digest covers it and all bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile

import jax
import numpy as np

from jaxem._version import __version__
from jaxem.storage.atomic import write_bytes

#: Of the layout and the names in it: a reader refuses what is newer than itself. 1 named classes by paths, which moved
#: (`jaxem.storage.names`).
FORMAT = 2


class FileError(ValueError):
    """A file that is damaged, not jaxem's, of another kind, or written by a newer jaxem; the message says which."""


def write(path: str | Path, kind: str, about: dict[str, Any], arrays: dict[str, Any]) -> None:
    """Write `arrays` to the npz file `path`, atomically: whoever reads sees the old file or the whole new one.

    Args:
        path: the file.
        kind: what the file is, e.g. "result"; `read` asks for it.
        about: what JSON can hold.
        arrays: array-likes or typed random keys by name.
    """
    flat = {name: _plain(x) for name, x in arrays.items()}
    versions = {"jaxem": __version__, "jax": jax.__version__, "numpy": np.__version__}
    table = {name: [impl, str(x.dtype), list(x.shape)] for name, (impl, x) in flat.items()}
    header = {"kind": kind, "versions": versions, "about": about, "arrays": table}
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    stored = {name: _bytes(x) if x.dtype.kind == "V" else x for name, (_, x) in flat.items()}
    buffer = io.BytesIO()
    digest = np.frombuffer(_digest(text, stored), np.uint8)
    np.savez(buffer, **{"jaxem.format": np.int64(FORMAT), "jaxem.header": text, "jaxem.digest": digest, **stored})  # type: ignore[arg-type]
    write_bytes(path, buffer.getbuffer())


def read(path: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `write` wrote.

    Args:
        path: the file.
        kind: what it must be.

    Returns:
        `about` with the key "versions" added, and NumPy arrays (typed random keys as such) by name.

    Raises:
        FileError: for a file that is missing, damaged, foreign, of another kind or of a newer format.
    """
    try:
        stored = _unpacked(path)
        if int(stored.pop("jaxem.format")) > FORMAT:
            raise FileError(f"{path}: written by a newer jaxem; this is {__version__}")
        text, digest = stored.pop("jaxem.header"), stored.pop("jaxem.digest")
        if _digest(text, stored) != digest.tobytes():
            raise FileError(f"{path}: damaged: its bytes are not those that were written")
        header = json.loads(text.tobytes())
        if header["kind"] != kind:
            raise FileError(f"{path}: holds a {header['kind']}, not a {kind}")
        arrays = {name: _restored(stored[name], *entry) for name, entry in header["arrays"].items()}
        return {**header["about"], "versions": dict(header["versions"])}, arrays
    except FileNotFoundError:
        raise FileError(f"{path}: no such file") from None
    except FileError:
        raise
    except Exception as error:  # zip files break in many ways
        raise FileError(f"{path}: damaged, or no file of jaxem's ({type(error).__name__}: {str(error)[:200]})") from error


def _unpacked(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file by name, in no more memory than twice its size: `write` compresses nothing."""
    size = Path(path).stat().st_size
    if not Path(path).is_file():  # a pipe would keep the reader waiting
        raise FileError(f"{path}: is no regular file")
    with ZipFile(path) as file:
        members = file.infolist()
        if any(m.compress_type != ZIP_STORED for m in members) or sum(m.file_size for m in members) > size:
            raise FileError(f"{path}: no file of jaxem's, or damaged: it holds more than its own size")
        return {m.filename.removesuffix(".npy"): _array(file.read(m)) for m in members}


def _array(content: bytes) -> np.ndarray:
    """The array of an npy file, which may claim any shape: NumPy's own reader takes memory for it first."""
    file, form = io.BytesIO(content), np.lib.format
    read_header = form.read_array_header_1_0 if form.read_magic(file) == (1, 0) else form.read_array_header_2_0
    shape, in_fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("holds Python objects")
    return np.ndarray(shape, dtype, content, file.tell(), order="F" if in_fortran else "C").copy(order="K")


def _plain(x: Any) -> tuple[str | None, np.ndarray]:
    """The implementation's name of a typed random key, or None; and the numbers."""
    if hasattr(x, "dtype") and jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key):
        return str(jax.random.key_impl(x)), np.asarray(jax.random.key_data(x))
    array = np.asarray(x)
    if array.dtype.kind == "O":
        raise TypeError(f"only arrays and numbers can be written; got {type(x).__name__}")
    return None, array


def _restored(stored: np.ndarray, impl: str | None, dtype: str, shape: list[int]) -> Any:
    kind = np.dtype(dtype)
    x = stored.view(kind).reshape(shape) if stored.dtype != kind else stored
    if list(x.shape) != shape:
        raise ValueError(f"shape {x.shape} where {shape} was written")
    return x if impl is None else jax.random.wrap_key_data(jax.numpy.asarray(x), impl=impl)


def _bytes(x: np.ndarray) -> np.ndarray:
    """As bytes: NumPy's format knows no bfloat16."""
    return np.frombuffer(np.ascontiguousarray(x).tobytes(), np.uint8)


def _digest(text: np.ndarray, stored: dict[str, np.ndarray]) -> bytes:
    total = hashlib.sha256(text.tobytes())
    for name in sorted(stored):
        x = stored[name]
        total.update(f"{name} {x.dtype.str} {x.shape}".encode())
        total.update(np.ascontiguousarray(x).data)
    return total.digest()
