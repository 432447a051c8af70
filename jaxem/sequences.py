"""Ragged sequences as one padded array and lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.types import struct
from jaxem.validation import numeric


@struct
class Sequences:
    """B sequences padded to a common length; N = B sequences lead.

    Attributes:
        x: (B, T) or (B, T, D); steps beyond a sequence's length may hold anything.
        length: (B,) int32, at least 1.
    """

    x: Any
    length: Any

    def valid(self) -> Any:
        """(B, T) whether a step is part of its sequence."""
        xp = np if isinstance(self.x, np.ndarray) and isinstance(self.length, np.ndarray) else jnp
        return xp.arange(self.x.shape[1]) < self.length[:, None]

    def filled(self) -> Array:
        """`x` with a copy of each sequence's first step in place of its padding: always a valid value."""
        valid = self.valid().reshape(*self.x.shape[:2], *(1,) * (self.x.ndim - 2))
        return jnp.where(valid, self.x, self.x[:, :1])

    def steps(self) -> Array:
        """(B * T,) or (B * T, D) rows of `filled`."""
        return self.filled().reshape(-1, *self.x.shape[2:])


def sequences(parts: Sequence[Any]) -> Sequences:
    """Ragged sequences as one structure.

    Args:
        parts: arrays (T_b,) or (T_b, D), one for each sequence.

    Raises:
        ValueError: for no sequence, an empty one, or shapes that differ in more than the first axis.
    """
    arrays = [numeric(part, f"sequence {i}") for i, part in enumerate(parts)]
    if not arrays:
        raise ValueError("sequences must hold at least one sequence; got none")
    for i, array in enumerate(arrays):
        if array.ndim not in (1, 2) or array.shape[1:] != arrays[0].shape[1:] or not array.size:
            raise ValueError(f"sequence {i} must have shape (T,) or (T, D), like the others, and T > 0; got {array.shape}")
    longest = max(map(len, arrays))
    dtype = np.result_type(*arrays)
    x = np.stack([np.concatenate([a, np.repeat(a[:1], longest - len(a), 0)]).astype(dtype) for a in arrays])
    return Sequences(x, np.array([len(a) for a in arrays], np.int32))


def as_sequences(data: Any, single: bool = True) -> Sequences:
    """`data` as `Sequences`.

    Args:
        data: `Sequences`, a dict of `x` and `length`, or, where `single`, one sequence (T,) or (T, D).
        single: whether an array may be one sequence. Blocks of a fit never are.

    Raises:
        TypeError: for an array where `single` is false.
        ValueError: for a dict with other keys, or an array of another rank.
    """
    if isinstance(data, Sequences):
        return data
    if isinstance(data, dict):
        if set(data) != {"x", "length"}:
            raise ValueError(f"data must be a dict of 'x' and 'length'; got keys {sorted(data)}")
        return Sequences(data["x"], data["length"])
    if not single:
        raise TypeError("data must be jaxem.sequences([...]) or a dict of 'x' and 'length' inside jit; got an array")
    x = data if isinstance(data, jnp.ndarray) else numeric(data, "data")
    if x.ndim not in (1, 2):
        raise ValueError(f"data must be one sequence (T,) or (T, D), or jaxem.sequences([...]); got shape {x.shape}")
    return Sequences(x[None], np.array([x.shape[0]], np.int32))
