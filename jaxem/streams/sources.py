"""Where batches come from: arrays and files read piece by piece, and a reader that runs ahead of the computation.

A source is read anew in every pass: iterating over it twice gives the same batches twice. A batch is data as
`jaxem.fit` takes them, or a pair (data, weight).
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, cast

import jax
import numpy as np

from jaxem.data.arrays import is_arrow_number
from jaxem.data.by_rows import aligned
from jaxem.data.validation import check_positive_int, warn_if_rounded

#: Bytes and rows of a batch where nothing else is said: much work for one call, little beside what a process takes.
BATCH_BYTES, BATCH_ROWS = 1 << 23, 1 << 18

#: Batches that are decoded at once: with fewer rows, what a call of the decoder costs is felt.
DECODED = 2

#: Batches that a reader may be ahead.
WAITING = 2


class BatchError(ValueError):
    """A batch that no fit could use, or a source that failed; the message names the batch, counted from 0."""


class Source(Protocol):
    """Whatever can be iterated over again and again."""

    def __iter__(self) -> Iterator[Any]: ...


@dataclass(frozen=True)
class Array:
    """Rows of arrays in memory or of `numpy.memmap`s.

    Attributes:
        data: pytree of arrays whose leaves lead with N.
        weight: (N,), or None.
        batch_size: rows of a batch; None: 8 MB, 262 144 rows at most.
    """

    data: Any
    weight: Any = None
    batch_size: int | None = None

    def __iter__(self) -> Iterator[Any]:
        leaves = jax.tree.leaves(self.data)
        size = _rows(self.batch_size, sum(x.dtype.itemsize * math.prod(x.shape[1:]) for x in leaves))
        for i in range(0, len(leaves[0]), size):
            piece = jax.tree.map(lambda x, i=i: x[i : i + size], self.data)
            yield piece if self.weight is None else (piece, self.weight[i : i + size])


@dataclass(frozen=True)
class Npy:
    """Rows of an array in a .npy file, which is mapped, not loaded.

    Attributes:
        path: of the file.
        batch_size: rows of a batch; None: 8 MB, 262 144 rows at most.
    """

    path: str | Path
    batch_size: int | None = None

    def __iter__(self) -> Iterator[Any]:
        return iter(Array(np.load(self.path, mmap_mode="r"), batch_size=self.batch_size))


@dataclass(frozen=True)
class Columns:
    """Rows (n, D) of numeric columns of Parquet, Arrow (Feather) or CSV files. Needs `pip install "jaxem[arrow]"`.

    Only the chosen columns are decoded, one row group ahead. Nulls become NaN. Columns of numbers and bools are taken; of
    dates, times, text and bytes none.

    Attributes:
        dataset: path of a file or a folder, several paths, or a `pyarrow.dataset.Dataset`.
        columns: names of the D columns, in this order; None: all but `weight`.
        weight: name of the column that holds the weights, or None.
        batch_size: rows of a batch; all batches but the last have as many. None: 8 MB, 262 144 rows at most.
        dtype: of the rows.
        format: of files given by path: "parquet", "feather", "csv", ...
    """

    dataset: Any
    columns: Sequence[str] | None = None
    weight: str | None = None
    batch_size: int | None = None
    dtype: Any = "float32"
    format: str = "parquet"

    #: Every batch is an array of its own, which nobody writes to again.
    fresh: ClassVar[bool] = True

    def __iter__(self) -> Iterator[Any]:
        try:
            import pyarrow.dataset as arrow
        except ImportError:
            raise ImportError('reading Parquet and Arrow files needs pyarrow: pip install "jaxem[arrow]"') from None
        found = self.dataset
        if not isinstance(found, arrow.Dataset):
            found = arrow.dataset(
                [str(p) for p in found] if isinstance(found, list | tuple) else str(found), format=self.format
            )
        chosen = [n for n in found.schema.names if n != self.weight] if self.columns is None else self.columns
        names = [chosen] if isinstance(chosen, str) else list(chosen)
        wanted = names if self.weight is None else [*names, self.weight]
        if missing := [n for n in wanted if n not in found.schema.names]:
            raise ValueError(f"columns must be among {found.schema.names}; got {missing}")
        kinds = {n: found.schema.field(n).type for n in wanted}
        if others := ", ".join(f"{n!r} of {kind}" for n, kind in kinds.items() if not is_arrow_number(kind)):
            raise TypeError(f"columns must hold numbers or bools; got {others}: convert them, or choose others by columns=")
        size = _rows(self.batch_size, len(wanted) * np.dtype(self.dtype).itemsize)
        options: dict[str, Any] = {}
        if isinstance(found, arrow.FileSystemDataset) and isinstance(found.format, arrow.ParquetFileFormat):
            options["fragment_scan_options"] = arrow.ParquetFragmentScanOptions(pre_buffer=False)
        records = found.to_batches(
            columns=wanted, batch_size=DECODED * size,
            batch_readahead=1, fragment_readahead=1, use_threads=False, **options,
        )  # fmt: skip
        for rows in self._filled(records, size, len(wanted)):
            yield rows if self.weight is None else (rows[:, :-1], rows[:, -1])

    def _filled(self, records: Iterable[Any], size: int, width: int) -> Iterator[np.ndarray]:
        """Row-major batches of `size` rows, whatever the sizes of the record batches."""
        rows, filled = aligned((size, width), self.dtype), 0
        for record in records:
            if rows.dtype.itemsize < 8:
                warn_if_rounded(rows, "the file", record, "read it with dtype='float64'")
            columns = [column.to_numpy(zero_copy_only=False) for column in record.columns]
            taken = 0
            while taken < record.num_rows:
                n = min(size - filled, record.num_rows - taken)
                for j, column in enumerate(columns):
                    rows[filled : filled + n, j] = column[taken : taken + n]
                filled, taken = filled + n, taken + n
                if filled == size:
                    yield rows
                    rows, filled = aligned((size, width), self.dtype), 0
        if filled:
            yield rows[:filled]


def _rows(batch_size: int | None, row_bytes: int) -> int:
    """Rows of a batch."""
    if batch_size is not None:
        return check_positive_int(batch_size, "batch_size")
    return min(max(BATCH_BYTES // max(row_bytes, 1), 1), BATCH_ROWS)


def as_source(batches: Any) -> tuple[Callable[[], Iterator[Any]], bool]:
    """A function that begins a pass over `batches`, and whether its arrays are its own (`fresh`).

    Raises:
        TypeError: for what cannot be iterated over, or only once.
    """
    if callable(batches):
        begin = cast(Callable[[], Iterable[Any]], batches)
        return lambda: iter(begin()), False
    if isinstance(batches, np.ndarray):
        batches = Array(batches)
    if isinstance(batches, str | Path) or not isinstance(batches, Iterable):
        wanted = "an iterable of batches, a source of jaxem.sources, or a function that returns an iterator"
        raise TypeError(f"batches must be {wanted}; got {type(batches).__name__}")
    if isinstance(batches, Iterator):
        raise TypeError(
            "batches must be read once an iteration, and an iterator ends after the first; give a function that returns"
            f" a new one, or anything that can be iterated over again; got {type(batches).__name__}"
        )
    return lambda: iter(batches), getattr(batches, "fresh", False)


_Item = TypeVar("_Item")


@contextmanager
def read_ahead(items: Iterator[_Item], depth: int) -> Iterator[Iterator[_Item]]:
    """The items, read by a thread of its own that runs at most `depth` ahead; its errors are raised here.

    Args:
        items: what to read.
        depth: items that may wait.
    """
    waiting: queue.Queue[tuple[_Item | None, BaseException | None, bool]] = queue.Queue(depth)
    left = threading.Event()
    x64 = jax.config.read("jax_enable_x64")  # which a context manager sets for one thread alone

    def hand(item: _Item | None, error: BaseException | None = None, last: bool = False) -> None:
        while not left.is_set():
            try:
                return waiting.put((item, error, last), timeout=0.1)
            except queue.Full:
                continue

    def read() -> None:
        try:
            with jax.enable_x64(x64):
                for item in items:
                    hand(item)
                    if left.is_set():
                        return
            hand(None, last=True)
        except BaseException as error:
            hand(None, error, last=True)

    def handed() -> Iterator[_Item]:
        while True:
            item, error, last = waiting.get()
            if error is not None:
                raise error
            if last:
                return
            yield cast(_Item, item)

    thread = threading.Thread(target=read, name="jaxem-reader", daemon=True)
    thread.start()
    try:
        yield handed()
    finally:
        left.set()
        thread.join(timeout=5)
