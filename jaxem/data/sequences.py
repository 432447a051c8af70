"""Ragged sequences as padded arrays, lengths, and which steps were observed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.data.validation import numeric
from jaxem.numerics.affine import LinearUnits
from jaxem.numerics.blocks import n_rows
from jaxem.numerics.trees import module_of
from jaxem.pytree import PyTree, static, struct


@struct
class Sequences:
    """B sequences padded to a common length; N = B sequences lead.

    Attributes:
        x: (B, T) or (B, T, D), or a tree of such arrays; steps beyond a sequence's length may hold anything.
        length: (B,) int32, at least 1.
        observed: (B, T) bools, False for missing steps; None: all are observed.
        single: whether it was one sequence given as an array; answers then come without the axis B.
    """

    x: PyTree
    length: Any
    observed: Any = None
    single: bool = static(default=False)

    @property
    def shape(self) -> tuple[int, int]:
        """B and T."""
        return jax.tree.leaves(self.x)[0].shape[:2]

    def valid(self) -> Any:
        """(B, T) whether a step is part of its sequence."""
        return module_of(self.x, self.length).arange(self.shape[1]) < self.length[:, None]

    def seen(self) -> Any:
        """(B, T) whether a step is part of its sequence and observed."""
        valid = self.valid()
        return valid if self.observed is None else valid & self.observed

    def filled(self) -> PyTree:
        """`x` with a copy of each sequence's first observed step in place of what is not: always a valid value."""
        seen, xp = self.seen(), module_of(self)
        first = None if self.observed is None else xp.argmax(seen, 1)[:, None]

        def leaf(x: Array) -> Array:
            wide = lambda a: a.reshape(*a.shape, *(1,) * (x.ndim - 2))  # noqa: E731
            return xp.where(wide(seen), x, x[:, :1] if first is None else xp.take_along_axis(x, wide(first), 1))

        return jax.tree.map(leaf, self.x)

    def blanked(self, absent: float) -> Sequences:
        """With `absent` (integers: -1) for each step that is not seen; inputs, which no model draws, as they are."""
        seen = jnp.asarray(self.seen())

        def leaf(x: Array) -> Array:
            value = absent if jnp.issubdtype(x.dtype, jnp.floating) else -1
            return jnp.where(seen.reshape(*seen.shape, *(1,) * (x.ndim - 2)), x, value)

        return self._changed(leaf)

    def _changed(self, leaf: Callable[[Array], Array]) -> Sequences:
        """With every array but `inputs` changed."""
        if isinstance(self.x, dict) and "inputs" in self.x:
            x = {name: part if name == "inputs" else jax.tree.map(leaf, part) for name, part in self.x.items()}
        else:
            x = jax.tree.map(leaf, self.x)
        return Sequences(x, self.length, self.observed)

    def steps(self) -> PyTree:
        """(B * T,) or (B * T, D) rows of `filled`."""
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), self.filled())

    @property
    def label_shape(self) -> tuple[int, ...]:
        """(B, T): labels are those of steps."""
        return self.shape

    def rescaled(self, affine: Any) -> Sequences:
        """The same sequences, their steps in new coordinates (see `jaxem.numerics.affine`).

        Inputs are as they are, where the change is not one of inputs too.
        """
        if isinstance(affine, LinearUnits):
            return Sequences(affine.data(self.x), self.length, self.observed)
        return self._changed(lambda x: affine.data(x.reshape(-1, *x.shape[2:])).reshape(*x.shape))


def step_weight(data: Sequences, weight: Array | None) -> Array:
    """(B * T,) weights of the steps, zero where nothing was observed; `weight` (B,), or None for all ones."""
    seen = jnp.asarray(data.seen())
    return (seen if weight is None else seen * weight[:, None]).reshape(-1)


def sequences(parts: Sequence[Any], round_to: int = 1) -> Sequences:
    """Ragged sequences as one structure.

    A step of floats that are all NaN is missing. So is none else: NaN in some columns only is for emissions that
    can do without them (`Product`, `Gaussian(missing="marginal")`).

    Args:
        parts: arrays (T_b,) or (T_b, D), or trees of such arrays, one for each sequence.
        round_to: pad to a multiple of this many steps, so that data of about the same length share one compiled fit.

    Raises:
        ValueError: for no sequence, an empty one, or shapes that differ in more than the first axis.
    """
    if not len(parts):
        raise ValueError("sequences must hold at least one sequence; got none")
    if round_to < 1:
        raise ValueError(f"round_to must be at least 1; got {round_to}")
    structure = jax.tree.structure(parts[0], is_leaf=_is_array)
    columns: list[list[np.ndarray]] = []
    for i, part in enumerate(parts):
        if jax.tree.structure(part, is_leaf=_is_array) != structure:
            raise ValueError(f"sequence {i} must be built like sequence 0; got another structure")
        leaves = [numeric(x, f"sequence {i}") for x in jax.tree.leaves(part, is_leaf=_is_array)]
        for x, like in zip(leaves, columns[0] if columns else leaves, strict=True):
            if x.ndim not in (1, 2) or x.shape[1:] != like.shape[1:] or not x.size:
                wanted = "shape (T,) or (T, D), like the others, and T > 0"
                raise ValueError(f"sequence {i} must have {wanted}; got {x.shape}")
            if len(x) != len(leaves[0]):
                raise ValueError(f"sequence {i}: all its arrays must have one length; got {len(leaves[0])} and {len(x)}")
        columns.append(leaves)
    lengths = np.array([len(leaves[0]) for leaves in columns], np.int32)
    longest = round_to * -(-int(lengths.max()) // round_to)

    def padded(arrays: Sequence[np.ndarray]) -> np.ndarray:
        out = [np.concatenate([a, np.repeat(a[:1], longest - len(a), 0)]) for a in arrays]
        return np.stack(out).astype(np.result_type(*arrays))

    x = jax.tree.unflatten(structure, [padded(arrays) for arrays in zip(*columns, strict=True)])
    return with_observed(Sequences(x, lengths))


def _is_array(x: Any) -> bool:
    return not isinstance(x, dict)


def with_observed(data: Sequences) -> Sequences:
    """Concrete sequences with `observed` set where steps are all NaN, and filled with valid ones there.

    Of a missing step, arrays that are not NaN (inputs, say) stay as they are, unless `observed` was given.
    """

    def absent(x: Any) -> np.ndarray:
        x = np.asarray(x)
        return np.isnan(x).all(tuple(range(2, x.ndim))) if x.dtype.kind == "f" else np.zeros(data.shape, bool)

    given = np.zeros(data.shape, bool) if data.observed is None else ~np.asarray(data.observed, bool)
    missing = given | np.any([absent(x) for x in jax.tree.leaves(data.x)], 0)
    valid = np.arange(data.shape[1]) < np.asarray(data.length)[:, None]
    if not (missing & valid).any():
        return Sequences(data.x, data.length, None)
    found = np.flatnonzero((valid & ~missing).reshape(-1))
    if not found.size:
        raise ValueError("data must hold at least one observed step; got only missing ones")

    def take(x: Any) -> np.ndarray:
        kept = (valid & ~given & ~absent(x)).reshape(-1)
        rows = np.asarray(x).reshape(-1, *x.shape[2:])
        return rows[np.where(kept, np.arange(missing.size), found[0])].reshape(x.shape)

    return Sequences(jax.tree.map(take, data.x), data.length, ~missing)


def one_sequence(data: Any) -> bool:
    """Whether `data` are one sequence, given as an array or a tree of arrays."""
    return data.single if isinstance(data, Sequences) else not (isinstance(data, dict) and "x" in data)


def as_sequences(data: Any, single: bool = True) -> Sequences:
    """`data` as `Sequences`.

    Args:
        data: `Sequences`; a dict of `x` and `length`, and `observed` if steps are missing; or, where `single`, one
            sequence (T,) or (T, D).
        single: whether an array may be one sequence. Blocks of a fit never are.

    Raises:
        TypeError: for an array where `single` is false.
        ValueError: for a dict with other keys, or an array of another rank.
    """
    if isinstance(data, Sequences):
        return data
    if isinstance(data, dict) and "x" in data:
        if not {"x", "length"} <= set(data) <= {"x", "length", "observed"}:
            raise ValueError(f"data must be a dict of 'x' and 'length', and 'observed' at most; got keys {sorted(data)}")
        return Sequences(data["x"], data["length"], data.get("observed"))
    if not single:
        raise TypeError("data must be jaxem.sequences([...]) or a dict of 'x' and 'length' inside jit; got an array")
    if isinstance(data, dict):
        one = jax.tree.map(lambda x: x if isinstance(x, jnp.ndarray) else numeric(x, "data"), data)
    else:
        try:
            one = data if isinstance(data, jnp.ndarray) else numeric(data, "data")
        except TypeError as error:
            raise TypeError(f"{error}; several sequences are given as jaxem.sequences([...])") from error
    lengths = {x.shape[0] for x in jax.tree.leaves(one) if x.ndim in (1, 2)}
    if len(lengths) != 1 or any(x.ndim not in (1, 2) for x in jax.tree.leaves(one)):
        shapes = ", ".join(str(x.shape) for x in jax.tree.leaves(one))
        raise ValueError(f"data must be one sequence (T,) or (T, D), or jaxem.sequences([...]); got shape {shapes}")
    if 0 in lengths:
        raise ValueError("data must hold at least one step; got none")
    sequences_ = Sequences(jax.tree.map(lambda x: x[None], one), np.array([lengths.pop()], np.int32))
    concrete = all(isinstance(x, np.ndarray) for x in jax.tree.leaves(sequences_.x))
    return with_observed(sequences_) if concrete else sequences_


def with_gaps(data: Any) -> Sequences:
    """`as_sequences`, and of what is concrete which steps were observed."""
    data = as_sequences(data)
    return with_observed(data) if isinstance(jax.tree.leaves(data.x)[0], np.ndarray) else data


def without_gaps(x: PyTree, whole: bool = False) -> tuple[PyTree, Array]:
    """Steps (B, ...) with ones, a valid value of every family, where they are missing; and (B,) which are.

    Args:
        x: steps, all NaN in some leaf where they are missing.
        whole: a step that holds any NaN is missing.
    """
    x = jax.tree.map(jnp.asarray, x, is_leaf=lambda leaf: isinstance(leaf, list))
    gone = jnp.zeros(n_rows(x), bool)
    for leaf in (leaf for leaf in jax.tree.leaves(x) if jnp.issubdtype(leaf.dtype, jnp.floating)):
        missing = jnp.isnan(leaf.reshape(len(leaf), -1))
        gone |= missing.any(1) if whole else missing.all(1)
    return jax.tree.map(lambda leaf: jnp.where(gone.reshape(-1, *(1,) * (leaf.ndim - 1)), 1, leaf), x), gone


def label_shape(data: PyTree) -> tuple[int, ...]:
    """Shape of labels for validated data: what the class of the data says, else (N,)."""
    return getattr(data, "label_shape", (n_rows(data),))


def rescaled_data(data: PyTree, affine: Any) -> PyTree:
    """Data in new coordinates, in their own dtype: by their class, where it has `rescaled(affine)`, else as rows."""
    if isinstance(data, dict) and "length" in data:  # sequences as a dict: inside jit nothing validated them
        data = as_sequences(data)
    own = getattr(data, "rescaled", None)
    return affine.data(data) if own is None else own(affine)


def lagged(data: Any, order: int) -> Sequences:
    """Each step as a response with the steps before it as inputs: regression on a series' own past.

    The first `order` steps of a sequence become inputs only (the likelihood is conditional on them). A step is
    missing where it or one of its lags is.

    Args:
        data: sequences of (B, T), or one sequence (T,).
        order: number of lags, P.

    Returns:
        `Sequences` of `x` = {"y": (B, T - P), "inputs": (B, T - P, P)}, the last step first.

    Raises:
        ValueError: where a sequence is not longer than `order`, or has columns.
    """
    data = as_sequences(data)
    x = data.x
    if isinstance(x, dict) or x.ndim != 2:
        raise ValueError(f"lagged takes sequences of single numbers (T,); got {jax.tree.map(lambda leaf: leaf.shape[1:], x)}")
    if x.shape[1] <= order or (isinstance(data.length, np.ndarray) and (data.length <= order).any()):
        raise ValueError(f"every sequence must be longer than order={order}; got length {x.shape[1]}")
    stack = module_of(x).stack
    n = x.shape[1] - order
    inputs = stack([x[:, order - lag : order - lag + n] for lag in range(1, order + 1)], -1)
    observed = data.observed
    if observed is not None:
        observed = stack([observed[:, order - lag : order - lag + n] for lag in range(order + 1)], -1).all(-1)
    return Sequences({"y": x[:, order:], "inputs": inputs}, data.length - order, observed)
