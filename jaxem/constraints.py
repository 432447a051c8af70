"""The sets that parameters live in, and their free coordinates.

A model's `constraints` is a prefix tree of these over its parameters. `to_free` and `from_free`
convert a whole tree; the parameter values passed as `like` tell `from_free` shapes and structural zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

from jaxem.numerics.linalg import cholesky, is_positive_definite, transpose
from jaxem.numerics.logs import divided
from jaxem.pytree import PyTree, struct

#: Of the way to a boundary that would be crossed, this much is left.
SHORT = 0.1


@struct
class Real:
    """Any real number."""

    #: Whether free coordinates are logarithms of what an estimate may take to zero.
    logarithmic: ClassVar[bool] = False

    def to_free(self, x: Array) -> Array:
        return x

    def from_free(self, free: Array, like: Array) -> Array:
        del like
        return free

    def inside(self, x: Array, like: Array) -> Array:
        """Whether traced `x` lies in the set's interior; entries that are zero in `like` are structural."""
        del like
        return jnp.isfinite(x).all()

    def pulled_back(self, x: Array, start: Array) -> Array:
        """`x` with each entry that crosses the boundary stopped short of it on its way from `start`, which lies inside."""
        del start
        return x

    def to_affine(self, x: Array) -> Array:
        """Coordinates, linear in `x`, of which any combination whose weights sum to one lies in the set's affine hull."""
        return x

    def from_affine(self, coordinates: Array, like: Array) -> Array:
        """What has these affine coordinates; `like` gives fixed values and structural zeros."""
        del like
        return coordinates

    def violation(self, x: np.ndarray) -> str | None:
        return None if np.isfinite(x).all() else "finite"

    def edge(self, x: Array, floor: Array) -> Array:
        """Which free coordinates of `x` lie at the edge of the set, or belong to entries at their `floor` (bools like x)."""
        free = self.to_free(x)
        return ~jnp.isfinite(free) | (floor if floor.shape == free.shape else floor.any())

    def settled(self, x: Array) -> Array:
        """`x` with entries that EM drives to zero without end where they change nothing any more."""
        return x

    def interval(self, x: Array, error: Array) -> tuple[Array, Array]:
        """Ends of x -+ error, taken on a scale on which they cannot leave the set."""
        return x - error, x + error


@struct
class PartReal(Real):
    """Real numbers of which some are constants. Free coordinates of a constant are there, and mean nothing.

    Attributes:
        known: bools shaped like the parameters, True for constants.
    """

    known: Any = None

    def from_free(self, free: Array, like: Array) -> Array:
        return jnp.where(self.known, like, free)

    def from_affine(self, coordinates: Array, like: Array) -> Array:
        return self.from_free(coordinates, like)

    def edge(self, x: Array, floor: Array) -> Array:
        return super().edge(x, floor) | self.known


@struct
class Positive(Real):
    """A number above zero; free coordinate log x."""

    logarithmic: ClassVar[bool] = True

    def to_free(self, x: Array) -> Array:
        return jnp.log(x)

    def from_free(self, free: Array, like: Array) -> Array:
        del like
        return jnp.exp(free)

    def inside(self, x: Array, like: Array) -> Array:
        del like
        return (jnp.isfinite(x) & (x > 0)).all()

    def pulled_back(self, x: Array, start: Array) -> Array:
        return jnp.where(x <= 0, SHORT * start, x)

    def violation(self, x: np.ndarray) -> str | None:
        return None if (np.isfinite(x) & (x >= np.finfo(x.dtype).tiny)).all() else "positive"  # subnormal is zero to XLA

    def interval(self, x: Array, error: Array) -> tuple[Array, Array]:
        return _log_interval(x, error)


@struct
class NonNegative(Real):
    """A number that is zero or above; free coordinate log x. Zeros are structural and stay exactly zero."""

    logarithmic: ClassVar[bool] = True

    def to_free(self, x: Array) -> Array:
        return jnp.log(jnp.where(x > 0, x, 1))

    def from_free(self, free: Array, like: Array) -> Array:
        return jnp.where(like > 0, jnp.exp(free), 0)

    def inside(self, x: Array, like: Array) -> Array:
        return (jnp.isfinite(x) & jnp.where(like > 0, x > 0, x == 0)).all()

    def pulled_back(self, x: Array, start: Array) -> Array:
        return jnp.where(x <= 0, SHORT * start, x)

    def violation(self, x: np.ndarray) -> str | None:
        return None if (np.isfinite(x) & (x >= 0)).all() else "non-negative"

    def edge(self, x: Array, floor: Array) -> Array:
        return (x <= 0) | floor

    def interval(self, x: Array, error: Array) -> tuple[Array, Array]:
        return _log_interval(x, error)


@struct
class UnitInterval(Real):
    """A number in (0, 1); free coordinate log(x / (1 - x))."""

    logarithmic: ClassVar[bool] = True

    def to_free(self, x: Array) -> Array:
        return jnp.log(x) - jnp.log1p(-x)

    def from_free(self, free: Array, like: Array) -> Array:
        del like
        return jax.nn.sigmoid(free)

    def inside(self, x: Array, like: Array) -> Array:
        del like
        return ((x > 0) & (x < 1)).all()

    def pulled_back(self, x: Array, start: Array) -> Array:
        return jnp.where(x <= 0, SHORT * start, jnp.where(x >= 1, 1 - SHORT * (1 - start), x))

    def settled(self, x: Array) -> Array:
        return jnp.maximum(x, jnp.finfo(x.dtype).eps ** 2)  # whose derivatives do not overflow, and which recedes as well

    def violation(self, x: np.ndarray) -> str | None:
        return None if ((x > 0) & (x < 1)).all() else "strictly between 0 and 1"

    def interval(self, x: Array, error: Array) -> tuple[Array, Array]:
        return _logit_interval(x, error)


def _log_interval(x: Array, error: Array) -> tuple[Array, Array]:
    ratio = jnp.exp(error / x)
    return x / ratio, x * ratio


def _logit_interval(x: Array, error: Array) -> tuple[Array, Array]:
    logit, half = jnp.log(x) - jnp.log1p(-x), error / (x * (1 - x))
    return jax.nn.sigmoid(logit - half), jax.nn.sigmoid(logit + half)


def _baseline(like: Array) -> Array:
    """(..., n) indices that put the largest entry last and keep the order of the others."""
    n = like.shape[-1]
    top = like.argmax(-1, keepdims=True)
    return jnp.where(jnp.arange(n) == n - 1, top, jnp.arange(n) + (jnp.arange(n) >= top))


@struct
class Simplex(Real):
    """Non-negative entries along the last axis that sum to one.

    Free coordinates are log-ratios to the largest entry of `like`, n-1 of them; entries that are zero
    in `like` are structural and stay exactly zero.
    """

    logarithmic: ClassVar[bool] = True

    def to_free(self, x: Array) -> Array:
        order = _baseline(x)
        p = jnp.take_along_axis(x, order, -1)
        rest = p[..., :-1]
        return jnp.where(rest > 0, jnp.log(jnp.where(rest > 0, rest, 1)) - jnp.log(p[..., -1:]), 0)

    def from_free(self, free: Array, like: Array) -> Array:
        order = _baseline(like)
        logits = jnp.concatenate([free, jnp.zeros_like(free[..., :1])], -1)
        logits = jnp.take_along_axis(logits, jnp.argsort(order, -1), -1)
        return jax.nn.softmax(jnp.where(like > 0, logits, -jnp.inf), -1)

    def inside(self, x: Array, like: Array) -> Array:
        return jnp.where(like > 0, x > 0, x == 0).all()

    def pulled_back(self, x: Array, start: Array) -> Array:
        stopped = jnp.where(x <= 0, SHORT * start, x)
        return stopped / stopped.sum(-1, keepdims=True)

    def to_affine(self, x: Array) -> Array:
        return x[..., :-1]

    def from_affine(self, coordinates: Array, like: Array) -> Array:
        last = 1 - coordinates.sum(-1, keepdims=True)
        return jnp.where(like > 0, jnp.concatenate([coordinates, last], -1), 0)

    def violation(self, x: np.ndarray) -> str | None:
        # As close as probabilities that passed through float32 come.
        valid = (x >= 0).all() and np.allclose(x.sum(-1), 1, rtol=0, atol=1e-5)
        return None if valid else "non-negative with a sum of 1 along the last axis"

    def settled(self, x: Array) -> Array:
        """Entries below eps^2 at zero: their derivatives underflow, and no sum of probabilities knows them."""
        return jnp.where(x < jnp.finfo(x.dtype).eps ** 2, 0, x)

    def edge(self, x: Array, floor: Array) -> Array:
        at = (x <= 0) | floor
        return jnp.take_along_axis(at, _baseline(x), -1)[..., :-1]

    def interval(self, x: Array, error: Array) -> tuple[Array, Array]:
        return _logit_interval(x, error)


@struct
class PartSimplex(Simplex):
    """A simplex along the last axis of which some entries are constants; the others share what these leave.

    Free coordinates of a constant are there, and mean nothing.

    Attributes:
        known: bools shaped like the parameters, True for constants.
    """

    known: Any = None

    def _shares(self, x: Array) -> Array:
        rest = jnp.where(self.known, 0, x)
        total = rest.sum(-1, keepdims=True)
        return jnp.where(total > 0, divided(rest, total), 1 / x.shape[-1])  # a row of constants has no shares

    def to_free(self, x: Array) -> Array:
        return super().to_free(self._shares(x))

    def from_free(self, free: Array, like: Array) -> Array:
        rest = jnp.where(self.known, 0, like).sum(-1, keepdims=True)
        shares = super().from_free(free, self._shares(like))
        return jnp.where(self.known | (rest <= 0), like, rest * shares)

    def pulled_back(self, x: Array, start: Array) -> Array:
        rest = jnp.where(self.known, 0, start).sum(-1, keepdims=True)
        shares = super().pulled_back(self._shares(x), self._shares(start))
        return jnp.where(self.known, start, rest * shares)

    def from_affine(self, coordinates: Array, like: Array) -> Array:
        return jnp.where(self.known, like, super().from_affine(coordinates, like))

    def edge(self, x: Array, floor: Array) -> Array:
        whole = jnp.broadcast_to(jnp.where(self.known, 0, x).sum(-1, keepdims=True) <= 0, x.shape)  # a row of constants
        return super().edge(self._shares(x), floor) | whole[..., 1:]


@struct
class SPD(Real):
    """Symmetric positive definite matrices; free coordinates are a Cholesky factor with its diagonal logged."""

    def to_free(self, x: Array) -> Array:
        lower = cholesky(x)
        rows, columns = np.tril_indices(x.shape[-1])
        entries = lower[..., rows, columns]
        on_diagonal = rows == columns
        return jnp.where(on_diagonal, jnp.log(jnp.where(on_diagonal, entries, 1)), entries)

    def from_free(self, free: Array, like: Array) -> Array:
        rows, columns = np.tril_indices(like.shape[-1])
        on_diagonal = rows == columns
        entries = jnp.where(on_diagonal, jnp.exp(jnp.where(on_diagonal, free, 0)), free)
        lower = jnp.zeros(like.shape, free.dtype).at[..., rows, columns].set(entries)
        return lower @ transpose(lower)

    def inside(self, x: Array, like: Array) -> Array:
        del like
        return is_positive_definite(x).all()

    def to_affine(self, x: Array) -> Array:
        return x[(..., *np.tril_indices(x.shape[-1]))]

    def from_affine(self, coordinates: Array, like: Array) -> Array:
        rows, columns = np.tril_indices(like.shape[-1])
        lower = jnp.zeros(like.shape, coordinates.dtype).at[..., rows, columns].set(coordinates)
        return lower.at[..., columns, rows].set(coordinates)

    def violation(self, x: np.ndarray) -> str | None:
        variance = np.diagonal(x, axis1=-2, axis2=-1)
        valid = np.isfinite(x).all() and np.allclose(x, np.swapaxes(x, -1, -2), rtol=1e-5, atol=0) and (variance > 0).all()
        if valid:  # in units of its own, by more than the rounding with which a factor is computed
            unit = 1 / np.sqrt(variance.astype(np.float64))
            valid = (np.linalg.eigvalsh(unit[..., None] * x * unit[..., None, :]) > x.shape[-1] * np.finfo(x.dtype).eps).all()
        return None if valid else "symmetric positive definite"

    def edge(self, x: Array, floor: Array) -> Array:
        free = self.to_free(x)
        return jnp.broadcast_to((floor.any((-2, -1)) | ~jnp.isfinite(free).all(-1))[..., None], free.shape)

    def interval(self, x: Array, error: Array) -> tuple[Array, Array]:
        """Variances on the log scale, covariances as they are."""
        variance = np.eye(x.shape[-1], dtype=bool)
        ends = _log_interval(jnp.where(variance, x, 1), error)
        return jnp.where(variance, ends[0], x - error), jnp.where(variance, ends[1], x + error)


@struct
class Partly(Real):
    """A set of which some entries are constants, whatever they are: the others alone must lie in `whole`.

    For an `SPD` matrix the constants must be whole blocks, and what lies beside them. Free coordinates of a constant are
    there, and mean nothing.

    Attributes:
        whole: `Real`, `Positive` or `SPD`.
        fixed: the constants in the shape of the parameters, NaN where they are free.
    """

    whole: Real = Real()
    fixed: Any = None

    @property
    def _known(self) -> Any:
        xp: Any = np if isinstance(self.fixed, np.ndarray) else jnp
        return ~xp.isnan(self.fixed)

    @property
    def _idle(self) -> Any:
        """Which free coordinates belong to constants."""
        return self._known[np.tril_indices(self.fixed.shape[-1])] if isinstance(self.whole, SPD) else self._known

    def _rest(self, x: Any) -> Any:
        """`x` with entries whose free coordinates are zero in place of the constants."""
        xp: Any = np if isinstance(x, np.ndarray) else jnp
        neutral = {SPD: np.eye(x.shape[-1] if x.ndim else 1), Positive: 1}.get(type(self.whole), 0)
        return xp.where(self._known, neutral, x).astype(x.dtype)

    def to_free(self, x: Array) -> Array:
        return self.whole.to_free(self._rest(x))

    def from_free(self, free: Array, like: Array) -> Array:
        return jnp.where(self._known, like, self.whole.from_free(jnp.where(self._idle, 0, free), like))

    def inside(self, x: Array, like: Array) -> Array:
        return self.whole.inside(self._rest(x), like)

    def to_affine(self, x: Array) -> Array:
        return self.whole.to_affine(x)

    def from_affine(self, coordinates: Array, like: Array) -> Array:
        return jnp.where(self._known, like, self.whole.from_affine(coordinates, like))

    def violation(self, x: np.ndarray) -> str | None:
        known = np.asarray(self._known)
        if not np.allclose(x[known], np.asarray(self.fixed)[known], rtol=1e-5, atol=0):
            return "equal to what is fixed where it is"
        return self.whole.violation(self._rest(x))

    def edge(self, x: Array, floor: Array) -> Array:
        return self._idle | self.whole.edge(self._rest(x), floor)

    def interval(self, x: Array, error: Array) -> tuple[Array, Array]:
        ends = self.whole.interval(self._rest(x), error)
        return jnp.where(self._known, x, ends[0]), jnp.where(self._known, x, ends[1])


@struct
class Fixed(Real):
    """A constant: no free coordinate, no M-step."""

    def to_free(self, x: Array) -> Array:
        return jnp.zeros((0,), x.dtype)

    def from_free(self, free: Array, like: Array) -> Array:
        del free
        return like

    def to_affine(self, x: Array) -> Array:
        return jnp.zeros((0,), x.dtype)

    def from_affine(self, coordinates: Array, like: Array) -> Array:
        del coordinates
        return like

    def edge(self, x: Array, floor: Array) -> Array:
        del x, floor
        return jnp.zeros((0,), bool)


def each(function: Callable[..., Any], constraints: PyTree, params: PyTree, *trees: PyTree) -> PyTree:
    """`function` of each leaf's set, and of the leaves of `params` and `trees`."""
    return jax.tree.map(function, broadcast(constraints, params), params, *trees, is_leaf=lambda x: isinstance(x, Real))


def broadcast(prefix: PyTree, tree: PyTree) -> PyTree:
    """Spell a prefix tree out to the full structure of `tree`; None, and a key that lacks, are real numbers.

    Raises:
        ValueError: for a key that `tree` has not.
        TypeError: for what is no constraint, such as its class or its name.
    """
    prefix = Real() if prefix is None else prefix
    if isinstance(prefix, Real):
        return jax.tree.map(lambda _: prefix, tree)
    if jax.tree_util.all_leaves((prefix,)):
        got = f"the class {prefix.__name__}" if isinstance(prefix, type) else repr(prefix)
        raise TypeError(f"constraints must hold instances, e.g. jaxem.constraints.Positive(), not names or classes; got {got}")
    if isinstance(prefix, dict) and isinstance(tree, dict):
        if unknown := prefix.keys() - tree.keys():
            raise ValueError(f"constraints must be for parameters, which are {sorted(tree)}; got {sorted(unknown)}")
        return {key: broadcast(prefix.get(key), sub) for key, sub in tree.items()}
    try:
        return jax.tree.map(broadcast, prefix, tree, is_leaf=lambda x: x is None or isinstance(x, Real | dict))
    except ValueError as error:
        if str(error).startswith("constraints"):
            raise
        got = f"{jax.tree.structure(tree)}; got {type(prefix).__name__}"
        raise ValueError(f"constraints must be built like the parameters, or end earlier: {got}") from None


def to_free(constraints: PyTree, params: PyTree) -> PyTree:
    """Unconstrained coordinates of `params`, in a tree of the same structure."""
    return each(lambda c, x: c.to_free(x), constraints, params)


def from_free(constraints: PyTree, free: PyTree, like: PyTree) -> PyTree:
    """Parameters at the free coordinates `free`; `like` gives shapes, fixed values and structural zeros."""
    return each(lambda c, x, f: c.from_free(f, x), constraints, like, free)


def to_affine(constraints: PyTree, params: PyTree) -> PyTree:
    """Coordinates of `params` in which the parameter space is a piece of an affine one; see `Real.to_affine`."""
    return each(lambda c, x: c.to_affine(x), constraints, params)


def from_affine(constraints: PyTree, coordinates: PyTree, like: PyTree) -> PyTree:
    """Parameters at affine `coordinates`; `like` gives shapes, fixed values and structural zeros."""
    return each(lambda c, x, a: c.from_affine(a, x), constraints, like, coordinates)


def pulled_back(constraints: PyTree, params: PyTree, start: PyTree) -> PyTree:
    """`params` with what crosses a boundary stopped short of it on its way from `start`; see `Real.pulled_back`."""
    return each(lambda c, x, s: c.pulled_back(x, s), constraints, params, start)


def inside(constraints: PyTree, params: PyTree, like: PyTree) -> Array:
    """Whether traced `params` lie inside their constraints; `like` gives fixed values and structural zeros."""
    return jnp.stack(jax.tree.leaves(each(lambda c, x, at: c.inside(x, at), constraints, params, like))).all()


def chart(constraints: PyTree, params: PyTree) -> tuple[Array, Callable[[Array], PyTree]]:
    """Free coordinates of `params` as one vector (P,), and the way back.

    The chart of a simplex depends on where its largest entry is: never mix vectors of two. Coordinates at infinity (the
    logarithm of a rate of zero) stay there.
    """
    vector, unravel = ravel_pytree(to_free(constraints, params))
    finite = jnp.isfinite(vector)
    return vector, lambda v: from_free(constraints, unravel(jnp.where(finite, v, vector)), params)


def check(constraints: PyTree, params: PyTree, name: str = "init") -> None:
    """Raise ValueError, naming the leaf, where concrete `params` lie outside their constraints."""
    full = broadcast(constraints, params)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for (path, x), c in zip(leaves, jax.tree.leaves(full, is_leaf=lambda x: isinstance(x, Real)), strict=True):
        if wanted := c.violation(np.asarray(x)):
            label = jax.tree_util.keystr(path, simple=True, separator=".")
            raise ValueError(f"{name}: {label} must be {wanted}; got {np.array2string(np.asarray(x), threshold=20)}")
