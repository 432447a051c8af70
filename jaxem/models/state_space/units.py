"""Units in which a state space model is fitted: a power of two, which rounds nothing, and the level that states can take up."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxem.data.sequences import Sequences
from jaxem.data.validation import is_traced
from jaxem.models.state_space.series import as_series
from jaxem.numerics.affine import Affine

#: By which power of the unit each parameter grows.
POWERS = {
    "initial_mean": 1,
    "initial_covariance": 2,
    "transition": 0,
    "transition_input": 1,
    "state_noise": 2,
    "observation": 0,
    "observation_input": 1,
    "observation_noise": 2,
}


def still_states(fixed: dict[str, Any]) -> np.ndarray | None:
    """(D, D) what levels of the columns become when only those are kept that states at rest can have; None: none.

    A diffuse first state may lie anywhere: where transitions keep a state as it is, the level that it shows may be
    taken from the data.
    """
    known = fixed.get("transition"), fixed.get("observation")
    if any(x is None or np.ndim(x) != 2 or is_traced(x) or np.isnan(x).any() for x in known):
        return None
    transition, observation = (np.asarray(x, float) for x in known)
    _, size, directions = np.linalg.svd(np.eye(len(transition)) - transition)
    shown = observation @ directions[size <= 1e-9 * max(size[0], 1)].T
    return shown @ np.linalg.pinv(shown)


def seen_values(data: Sequences) -> tuple[Any, Any]:
    """(B, T, D) observations and which are seen."""
    series = as_series(data)
    return series.y, series.seen


def units(data: Sequences, still: np.ndarray | None, xp: Any, present: Any = None) -> Affine:
    """Coordinates of about unit scale.

    Args:
        data: series as they are validated.
        still: of `still_states`.
        xp: numpy or jax.numpy.
        present: (B,) bools, the series that count; None: all.
    """
    y, there = seen_values(data)
    there = there if present is None else there & present[:, None, None]
    wide = y.astype(np.float64) if xp is np else y
    count = xp.maximum(there.sum((0, 1)), 1).astype(wide.dtype)
    mean = xp.where(there, wide, 0).sum((0, 1)) / count
    size = xp.sqrt((xp.square(xp.where(there, wide - mean, 0)).sum((0, 1)) / count).mean())
    level = xp.abs(mean).max()
    size = xp.where(size > 4 * xp.finfo(y.dtype).eps * level, size, level)  # what does not vary is its own unit
    power = xp.round(xp.log2(xp.where(size > 0, size, 1))).astype(np.int32)
    one, shift = xp.ones((), wide.dtype), xp.zeros_like(mean)
    if still is not None:
        shift = xp.asarray(still, wide.dtype) @ mean
    return Affine(shift, xp.ldexp(one, -power), xp.ldexp(one, power), "scalar")
