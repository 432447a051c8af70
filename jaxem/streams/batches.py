"""A stream of batches on the host: checked, cut to one size and padded, so that one program takes them all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxem.data.by_rows import aligned
from jaxem.data.validation import numeric
from jaxem.fitting.checks import check_rows_finite
from jaxem.model import Model
from jaxem.numerics.blocks import Blocks, float_dtype, n_rows
from jaxem.pytree import PyTree
from jaxem.streams.sources import WAITING, BatchError, as_source, read_ahead


class Stream:
    """A source that is read once an iteration; the first batch sets the size of all pieces.

    Attributes:
        size: rows of a piece.
        total: sum of all weights, known after `survey`.
    """

    def __init__(self, model: Model, batches: Any) -> None:
        """Nothing is read yet.

        Args:
            model: what says which data are valid.
            batches: the source.

        Raises:
            TypeError: for a source that cannot be read, or only once.
        """
        self.model = model
        self.begin, self.fresh = as_source(batches)
        self.rows: Any = None
        self.size, self.n_blocks, self.total, self.n_passes = 0, 1, 0.0, 0

    def survey(self, size: int) -> tuple[PyTree, np.ndarray | None]:
        """The first pass: all batches checked, all weights added up, and `size` data drawn, each with the same chance.

        Returns:
            The sample in the order of the stream, and its weights; None where all are one.

        Raises:
            BatchError: for a bad batch, or where nothing counts.
        """
        rng, kept, plain = np.random.default_rng(0), Sample(size), True
        with read_ahead(self._pieces(), WAITING) as pieces:
            for raw, _, weight in pieces:
                weight = np.ones(self.size) if weight is None else weight
                here = np.flatnonzero(weight)
                self.total += float(weight.sum(dtype=np.float64))
                plain = plain and bool((weight[here] == 1).all())
                kept.add(rng.random(len(here)), jax.tree.map(lambda x, i=here: x[i], raw), weight[here])
        if not self.total:
            raise BatchError("batches must hold data of positive weight; the first pass found none")
        data, weight = kept.rows()
        return data, None if plain else weight

    def arrange(self, block_size: int) -> None:
        """Let later passes come in equal blocks of at most `block_size` rows, with as little padding as can be."""
        least = math.ceil(self.size / block_size)
        even = [count for count in range(least, 2 * least) if self.size % count == 0]
        self.n_blocks = even[0] if even else least
        self.size = self.n_blocks * math.ceil(self.size / self.n_blocks)

    def blocks(self) -> Iterator[Blocks]:
        """A later pass: validated pieces, cut into blocks, on the host."""
        found = False
        for _, data, weight in self._pieces():
            found = True
            dtype = float_dtype(data)
            counts: Any = np.ones(self.size, dtype) if weight is None else weight.astype(dtype)
            whole = Blocks(data, counts, None)
            yield jax.tree.map(lambda x: x.reshape(self.n_blocks, -1, *x.shape[1:]), whole)
        if not found:
            raise BatchError(f"batches must begin anew in every pass; pass {self.n_passes} found none, so give a new iterator")

    def _pieces(self) -> Iterator[tuple[PyTree, PyTree, np.ndarray | None]]:
        """Arrays as they came, the same validated, and weights (None: all one), of `size` rows; errors name the batch."""
        self.n_passes += 1
        number, batches = 0, None
        while True:
            try:
                batches = self.begin() if batches is None else batches
                batch = next(batches)
            except StopIteration:
                return
            except ImportError:
                raise
            except Exception as error:
                raise BatchError(f"batch {number}: the source raised {type(error).__name__}: {error}") from error
            try:
                yield from self._cut(batch)
            except (ValueError, TypeError) as error:
                raise BatchError(f"batch {number}: {error}") from error
            number += 1

    def _cut(self, batch: Any) -> Iterator[tuple[PyTree, PyTree, np.ndarray | None]]:
        data, weight = batch if isinstance(batch, tuple) and len(batch) == 2 else (batch, None)
        raw = jax.tree.map(lambda x: numeric(x, "data"), np.asarray(data) if isinstance(data, list) else data)
        leaves = jax.tree.leaves(raw)
        lengths = {x.shape[:1] for x in leaves}
        if len(lengths) != 1 or lengths == {()}:
            raise ValueError(f"data must be arrays that lead with N; got shapes {', '.join(str(x.shape) for x in leaves)}")
        (n,) = lengths.pop()
        if n == 0:
            return
        rows = ", ".join(f"{x.dtype}{list(x.shape[1:])}" for x in leaves), jax.tree.structure(raw)
        if self.rows is None:
            self.rows, self.size = rows, n
        if rows != self.rows:
            raise ValueError(f"data must have rows like those of batch 0, {self.rows[0]}; got {rows[0]} in {rows[1]}")
        weight = None if weight is None else numeric(weight, "weight")
        if weight is not None and (weight.shape != (n,) or not np.isfinite(weight).all() or (weight < 0).any()):
            raise ValueError(f"weight must be ({n},) finite non-negative numbers; got shape {weight.shape}")
        for i in range(0, n, self.size):
            part = jax.tree.map(lambda x, i=i: x[i : i + self.size], raw)
            own = None if weight is None else weight[i : i + self.size]
            if own is None or own.any():
                yield self._padded(part, own)

    def _padded(self, part: PyTree, weight: np.ndarray | None) -> tuple[PyTree, PyTree, np.ndarray | None]:
        missing = self.size - n_rows(part)
        if weight is None and missing:
            weight = np.ones(n_rows(part))
        if weight is not None and (missing or not weight.all()):
            # A copy of a row that counts in place of what does not: it may hold anything.
            index = np.where(weight > 0, np.arange(len(weight)), np.argmax(weight > 0))
            index = np.concatenate([index, np.full(missing, index[0])])
            part = jax.tree.map(lambda x: x[index], part)
            weight = np.concatenate([weight, np.zeros(missing)])
        elif not self.fresh:
            # The source may write to its array again, which on a CPU becomes the device's own.
            part = jax.tree.map(_copied, part)
        data = self.model.validate(part)
        if n_rows(data) != self.size:
            raise ValueError(f"data must lead with N in every leaf; got {self.size} rows that hold {n_rows(data)} data")
        check_rows_finite(self.model, data)
        return part, data, weight


def _copied(x: np.ndarray) -> np.ndarray:
    copy = aligned(x.shape, x.dtype)
    copy[...] = x
    return copy


class Sample:
    """Rows drawn without replacement from a stream of unknown length: those with the smallest lots."""

    def __init__(self, size: int) -> None:
        """Args: size: rows to draw."""
        self.size, self.parts, self.highest = size, [], 1.0

    def add(self, lots: np.ndarray, data: PyTree, weight: np.ndarray) -> None:
        """Rows with their lots, uniform numbers."""
        here = np.flatnonzero(lots < self.highest)
        self.parts.append((lots[here], jax.tree.map(lambda x: x[here], data), weight[here]))
        if sum(len(part[0]) for part in self.parts) >= 2 * self.size:
            self._shrink()

    def _shrink(self) -> None:
        lots, data, weight = jax.tree.map(lambda *x: np.concatenate(x), *self.parts)
        if len(lots) > self.size:
            self.highest = float(np.partition(lots, self.size)[self.size])
            here = np.flatnonzero(lots < self.highest)
            lots, data, weight = jax.tree.map(lambda x: x[here], (lots, data, weight))
        self.parts = [(lots, data, weight)]

    def rows(self) -> tuple[PyTree, np.ndarray]:
        """The rows drawn, in the order in which they came, and their weights."""
        self._shrink()
        return self.parts[0][1:]
