"""Changes of coordinates x' = matrix (x - shift): computed once, applied to data, undone exactly on parameters.

float32 loses clusters that lie far from the origin or on a thin ridge; in coordinates where the data
have zero mean and unit covariance it does not. The arithmetic works on NumPy arrays (the boundary of a
plain `fit`, in float64) and on JAX arrays (inside jit) alike.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np

from jaxem.pytree import static, struct

Kind = Literal["full", "diagonal", "scalar"]


@struct
class Affine:
    """x' = matrix (x - shift).

    Attributes:
        shift: (D,).
        matrix: (D, D), (D,) or () for kind full, diagonal or scalar.
        inverse: its inverse in the same form.
        kind: form of the matrix.
    """

    shift: Any
    matrix: Any
    inverse: Any
    kind: Kind = static(default="full")

    #: Whether one leaf of parameters follows from several in other units: then none can be frozen there alone.
    mixes: ClassVar[bool] = False

    def rows(self, x: Any) -> Any:
        """(..., D) rows in the new coordinates."""
        return self._linear(self.matrix, x - self.shift)

    def data(self, x: Any) -> Any:
        """(N, D) rows in the new coordinates and in the dtype of `x`; NumPy arrays in this change's precision, by chunks."""
        if not isinstance(x, np.ndarray):
            return self.rows(x)
        out = np.empty(x.shape, x.dtype)
        for i in range(0, len(x), 65_536):
            out[i : i + 65_536] = self.rows(x[i : i + 65_536].astype(np.asarray(self.shift).dtype))
        return out

    def means(self, mean: Any) -> Any:
        """(..., D) locations in the new coordinates."""
        return self.rows(mean)

    def differences(self, v: Any) -> Any:
        """(..., D) differences of locations in the new coordinates."""
        return self._linear(self.matrix, v)

    def covariances(self, covariance: Any) -> Any:
        """Covariances in the new coordinates, in the form in which they came.

        Args:
            covariance: (..., D, D) with a full matrix, else squared scales that multiply elementwise.
        """
        return self.matrices(covariance) if self.kind == "full" else covariance * self.matrix**2

    def matrices(self, covariance: Any) -> Any:
        """(..., D, D) covariances in the new coordinates, whatever the form of the matrix."""
        if self.kind == "full":
            changed = self.matrix @ covariance @ self.matrix.T
            return (changed + changed.swapaxes(-1, -2)) / 2  # float32 products are symmetric only to rounding
        scale = self.matrix if self.kind == "scalar" else self.matrix[:, None]
        return scale * covariance * self.matrix

    def _linear(self, matrix: Any, x: Any) -> Any:
        return x @ matrix.T if self.kind == "full" else x * matrix

    def log_abs_det(self, there: Any = True) -> Any:
        """log |det matrix|: what a row's log-density loses in the new coordinates.

        Args:
            there: (N, D) bools, entries of the rows that are not missing; the result is (N,). Not for a full matrix.
        """
        xp: Any = np if isinstance(self.matrix, np.ndarray | np.generic) else jnp
        if self.kind == "full":
            return xp.linalg.slogdet(self.matrix)[1]
        return (there * xp.broadcast_to(xp.log(xp.abs(self.matrix)), self.shift.shape)).sum(-1)

    def inverted(self) -> Affine:
        """The change back."""
        shift = -self._linear(self.matrix, self.shift)
        return dataclasses.replace(self, shift=shift, matrix=self.inverse, inverse=self.matrix)


@struct
class LinearUnits(Affine):
    """A diagonal change of P inputs and, the last column, of a response that is linear in them, and stays so."""

    mixes: ClassVar[bool] = True

    @property
    def inputs(self) -> Affine:
        """The change of inputs (..., P)."""
        return Affine(self.shift[:-1], self.matrix[:-1], self.inverse[:-1], "diagonal")

    @property
    def response(self) -> Affine:
        """The change of numbers in the units of the response, of any shape."""
        return Affine(self.shift[-1], self.matrix[-1], self.inverse[-1], "scalar")

    def data(self, x: Any) -> Any:
        """Responses, or a dict of them and of `inputs`."""
        if not isinstance(x, dict):
            return self.response.data(x)
        return {name: (self.inputs if name == "inputs" else self.response).data(part) for name, part in x.items()}

    def slopes(self, coefficients: Any) -> Any:
        """(..., P) coefficients in the new units."""
        return coefficients * (self.matrix[-1] * self.inverse[:-1])

    def level(self, intercept: Any, coefficients: Any) -> Any:
        """(...) intercepts in the new units, where both are in the old ones."""
        return self.response.rows(intercept + (coefficients * self.shift[:-1]).sum(-1))

    def line(self, coefficients: Any) -> Any:
        """(P + 1,) coefficients in the new units, the intercept last."""
        slopes, level = coefficients[:-1], self.level(coefficients[-1], coefficients[:-1])
        xp: Any = np if isinstance(level, np.ndarray | np.generic) else jnp
        return xp.append(self.slopes(slopes), level)

    def log_abs_det(self, there: Any = True) -> Any:
        """What log-densities of responses lose: () or, where not all are `there`, in the shape of those bools."""
        xp: Any = np if isinstance(self.matrix, np.ndarray) else jnp
        return there * xp.log(xp.abs(self.matrix[-1]))


def linear_units(y: Any, inputs: Any, xp: Any, present: Any = None) -> LinearUnits:
    """The change that gives a response and its inputs means near zero and variances near one.

    Units are powers of two, and shifts so many units: what is near that already keeps its digits, and a variance at its
    floor is there in the data's own units too.

    Args:
        y: (...) responses; NaN where there is none, and its inputs do not count.
        inputs: (..., P), or None: there are none.
        xp: numpy or jax.numpy.
        present: (N,) bools, which of the first axis count. None: all.
    """
    y = y[..., None] if present is None else xp.where(present.reshape(-1, *(1,) * y.ndim), y[..., None], xp.nan)
    if inputs is not None:
        y = xp.concatenate([xp.where(xp.isnan(y), xp.nan, inputs), y], -1)
    found = standardization(y.reshape(-1, y.shape[-1]), "diagonal", xp)
    power = xp.round(xp.log2(found.inverse)).astype(np.int32)
    one = xp.ones_like(found.inverse)
    unit = xp.ldexp(one, power)
    return LinearUnits(xp.round(found.shift / unit) * unit, xp.ldexp(one, -power), unit, "diagonal")


def whitening(x: Any, kind: Kind, xp: Any, present: Any = None) -> Affine:
    """The change that gives the rows of `x` zero mean and unit covariance, variances or mean variance.

    Directions in which the data do not vary keep a finite scale. The result is in the dtype of `x` for
    JAX arrays, in float64 for NumPy arrays, which are read in chunks.

    Args:
        x: (N, D).
        kind: form of the matrix.
        xp: numpy or jax.numpy.
        present: (N,) bools, the rows that count; for jax.numpy, whose arrays cannot shed the others. None: all.
    """
    n = len(x) if present is None else present.sum()
    if xp is np:
        chunks = [slice(i, i + 65_536) for i in range(0, n, 65_536)]
        first = x[0].astype(np.float64)  # about it: a long sum of one number is not as many times that number
        mean = first + sum((x[c] - first).sum(0) for c in chunks) / n
        if kind == "full":
            covariance = sum((y := x[c] - mean).T @ y for c in chunks) / n
        else:
            covariance = sum(np.square(x[c] - mean).sum(0) for c in chunks) / n
    else:
        counts = 1 if present is None else present[:, None].astype(x.dtype)
        first = (counts * x).sum(0) / n
        mean = first + (counts * (x - first)).sum(0) / n
        y = counts * (x - mean)
        covariance = y.T @ y / n if kind == "full" else (y * y).sum(0) / n
    if kind != "full":
        return _scaling(mean, covariance, kind, x.dtype, xp)
    varies, scale = _scales(mean, xp.diagonal(covariance), x.dtype, xp)
    correlation = covariance / (scale[:, None] * scale) + xp.diag(xp.where(varies, 0, 1))
    values, vectors = xp.linalg.eigh(correlation)
    # The sign of an eigenvector is chance, of another order of the rows or another number of devices: one is chosen.
    weights = xp.sqrt(xp.arange(1, len(vectors) + 1, dtype=vectors.dtype))
    vectors = vectors * xp.where(weights @ vectors < 0, -1, 1)
    # Along directions without width, of what is dependent or of too few rows, a row's rounding is no unit to measure in:
    # they keep the largest one, in which a floor is more than rounding when it is mapped back.
    rounding = len(vectors) * max(xp.finfo(x.dtype).eps, 16 * xp.finfo(values.dtype).eps)
    size = xp.sqrt(xp.where(values > rounding * values[-1], values, values[-1]))
    return Affine(mean, (vectors / size).T / scale, scale[:, None] * (vectors * size), kind)


def standardization(x: Any, kind: Kind, xp: Any, present: Any = None) -> Affine:
    """As `whitening`, of rows that lack entries (NaN): each column by what there is of it.

    Args:
        x: (N, D).
        kind: "diagonal" or "scalar"; a full matrix would spread the gaps.
        xp: numpy or jax.numpy.
        present: (N,) bools, the rows that count. None: all.
    """
    dtype = x.dtype
    x = x.astype(np.float64) if xp is np else x
    there = ~xp.isnan(x) if present is None else ~xp.isnan(x) & present[:, None]
    count = xp.maximum(there.sum(0), 1).astype(x.dtype)
    first = xp.where(there, x, 0).sum(0) / count
    mean = first + xp.where(there, x - first, 0).sum(0) / count
    variance = xp.square(xp.where(there, x - mean, 0)).sum(0) / count
    return _scaling(mean, variance, kind, dtype, xp)


def _scales(mean: Any, variance: Any, dtype: Any, xp: Any) -> tuple[Any, Any]:
    """(D,) whether columns vary by more than the rounding of their own values, and by how much, 1 where they do not."""
    varies = variance > (4 * xp.finfo(dtype).eps * xp.abs(mean)) ** 2
    return varies, xp.sqrt(xp.where(varies, variance, 1))


def _scaling(mean: Any, variance: Any, kind: Kind, dtype: Any, xp: Any) -> Affine:
    varies, scale = _scales(mean, variance, dtype, xp)
    if kind == "diagonal":
        return Affine(mean, 1 / scale, scale, kind)
    size = xp.where(varies.any(), xp.sqrt(xp.where(varies, variance, 0).mean()), 1)
    return Affine(mean, 1 / size, 1 * size, kind)
