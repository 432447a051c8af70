"""Time series of vectors with missing entries, and the inputs that drive them, as models over Gaussian chains read them."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax import Array

from jaxem.data.sequences import Sequences, as_sequences
from jaxem.data.validation import check_finite, floating, numeric
from jaxem.numerics.blocks import float_dtype
from jaxem.numerics.trees import module_of
from jaxem.pytree import PyTree, struct


@struct
class Series:
    """B series of T steps.

    Attributes:
        y: (B, T, D), zero where it is not seen.
        seen: (B, T, D) bools.
        inputs: (B, T, P), P = 0 where there are none; zero beyond a series' end.
        valid: (B, T) whether a step is part of its series.
    """

    y: Array
    seen: Array
    inputs: Array
    valid: Array


def as_series(data: PyTree) -> Series:
    """Data in any of their forms; NaN in y is missing, and so are steps that are not `observed`."""
    if isinstance(data, Series):
        return data
    data = as_sequences(data)
    xp = module_of(data)
    y = xp.asarray(data.x["y"] if isinstance(data.x, dict) else data.x)
    y = y.astype(jax.dtypes.canonicalize_dtype(float_dtype(y)))
    y = y[..., None] if y.ndim == 2 else y
    valid = data.valid()
    steps = valid if data.observed is None else valid & data.observed
    seen = steps[..., None] & ~xp.isnan(y)
    inputs = data.x.get("inputs") if isinstance(data.x, dict) else None
    inputs = xp.zeros((*valid.shape, 0), y.dtype) if inputs is None else xp.asarray(inputs, y.dtype)
    inputs = inputs[..., None] if inputs.ndim == 2 else inputs
    return Series(xp.where(seen, y, 0), seen, xp.where(valid[..., None], inputs, 0), valid)


def validated(data: Any) -> Sequences:
    """`Sequences` of {"y": (B, T, D), "inputs": (B, T, P)}, or of y alone: NaN in y where it is missing.

    Raises:
        ValueError: for other keys, shapes or lengths, infinite values, inputs that are not finite, or nothing observed.
    """
    if isinstance(data, dict) and "inputs" in data:  # else they would pass for missing steps
        check_finite(numeric(data["inputs"], "data inputs"), "data inputs")
    data = as_sequences(data)
    parts = data.x if isinstance(data.x, dict) else {"y": data.x}
    if not {"y"} <= set(parts) <= {"y", "inputs"}:
        raise ValueError(f"data must be series, or a dict of 'y' and 'inputs'; got keys {sorted(parts)}")
    parts = {name: floating(numeric(x, f"data {name}"), f"data {name}") for name, x in parts.items()}
    length, shape = numeric(data.length, "data length"), parts["y"].shape[:2]
    for name, x in parts.items():
        if x.ndim not in (2, 3) or x.shape[:2] != shape or 0 in x.shape:
            raise ValueError(f"data {name} must have shape (B, T) or (B, T, D) and B, T as y has them, {shape}; got {x.shape}")
    if length.shape != shape[:1] or length.dtype.kind not in "iu" or length.min() < 1 or length.max() > shape[1]:
        raise ValueError(f"data length must be ({shape[0]},) integers in 1..{shape[1]}; got {length}")
    if shape[1] < 2:
        raise ValueError(f"data must have at least 2 times; got shape {parts['y'].shape}")
    parts = {name: x[..., None] if x.ndim == 2 else x for name, x in parts.items()}
    valid = np.arange(shape[1]) < length[:, None]
    hidden = ~valid if data.observed is None else ~(valid & np.asarray(data.observed))
    y = np.where(hidden[..., None], np.nan, parts["y"]).astype(parts["y"].dtype)
    if np.isinf(y).any():
        raise ValueError(f"data y must be finite, or NaN where it is missing; got inf in {int(np.isinf(y).sum())} places")
    if np.isnan(y).all():
        raise ValueError("data y must hold at least one observed entry; got only missing ones")
    if "inputs" in parts:
        check_finite(parts["inputs"][valid], "data inputs")
        inputs = np.where(valid[..., None], parts["inputs"], 0).astype(y.dtype)
        return Sequences({"y": y, "inputs": inputs}, length.astype(np.int32))
    return Sequences(y, length.astype(np.int32))
