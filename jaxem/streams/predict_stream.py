"""`predict_stream`: what a model says of data larger than memory, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxem.model import Model
from jaxem.pytree import PyTree
from jaxem.streams.sources import BatchError, as_source
from jaxem.types import Params


def predict_stream(model: Model, params: Params, batches: Any, *, method: str = "predict", out: Any = None) -> Any:
    """Answers about batches, one pass over them.

    Args:
        model: the model.
        params: its parameters.
        batches: as `fit_stream` takes them, or an iterator; weights are passed over. Batches of one size share a program.
        method: name of the model's method of (params, data): "predict", "posterior", "log_prob", ...
        out: arrays to write, shaped like the answer about all batches together (`numpy.memmap`, say), or None.

    Returns:
        An iterator over the answers of successive batches; `out` where that is given.

    Raises:
        BatchError: for a batch that the method cannot read, by its number.
        ValueError: where `out` has more or fewer rows than the batches.
    """
    answer = getattr(model, method, None)
    if not callable(answer):
        raise ValueError(f"method must name a method of {type(model).__name__} that takes (params, data); got {method!r}")
    source = batches if isinstance(batches, Iterator) else as_source(batches)[0]()
    found = _answers(answer, params, source)
    return found if out is None else _written(found, out)


def _answers(answer: Any, params: Params, batches: Iterator[Any]) -> Iterator[PyTree]:
    for number, batch in enumerate(batches):
        data = batch[0] if isinstance(batch, tuple) and len(batch) == 2 else batch
        try:
            found = answer(params, data)
        except (ValueError, TypeError) as error:
            raise BatchError(f"batch {number}: {error}") from error
        yield found


def _written(answers: Iterator[PyTree], out: PyTree) -> PyTree:
    places, structure = jax.tree.flatten(out)
    filled, rows = 0, len(places[0])
    for found in answers:
        leaves = jax.device_get(jax.tree.leaves(found))
        n = len(leaves[0])
        if jax.tree.structure(found) != structure or any(len(x) != n for x in leaves):
            raise ValueError(f"out must be built like the answer, rows first: {jax.tree.structure(found)}; got {structure}")
        for place, part in zip(places, leaves, strict=True):
            if place.shape[1:] != part.shape[1:] or not np.can_cast(part.dtype, place.dtype, "same_kind"):
                wanted = f"rows of {part.dtype}{list(part.shape[1:])}"
                raise ValueError(f"out must have {wanted}; got {place.dtype}{list(place.shape[1:])}")
            if filled + n > len(place):
                raise ValueError(f"out must have a row for each of the batches'; got {len(place)}, and at least {filled + n}")
            place[filled : filled + n] = part
        filled += n
    if filled != rows:
        raise ValueError(f"out must have a row for each of the batches'; got {rows}, and {filled} of theirs")
    return out
