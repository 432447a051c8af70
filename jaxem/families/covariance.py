"""The four shapes of a covariance, and what the Gaussian family asks of each.

Every method works on stacks of K components; `factor` is a square root of a covariance in the same
shape (a lower Cholesky factor, or standard deviations) and `inverse` its inverse.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem import constraints as sets
from jaxem.numerics.affine import Kind
from jaxem.numerics.linalg import PRECISION, cholesky, eye_like, inverse_lower, transpose
from jaxem.numerics.trees import any_vmapped


def _symmetric(x: Array) -> Array:
    return (x + transpose(x)) / 2


class Full:
    """(K, D, D): a matrix for each component."""

    constraint = sets.SPD()
    affine_kind: Kind = "full"

    def shape(self, k: int, d: int) -> tuple[int, ...]:
        return (k, d, d)

    def identity(self, k: int, d: int, dtype: Any) -> Array:
        return jnp.broadcast_to(jnp.eye(d, dtype=dtype), self.shape(k, d))

    def n_free(self, k: int, d: int) -> int:
        return k * d * (d + 1) // 2

    def needed(self, d: int) -> int:
        """Rows without which a component's covariance is singular."""
        return d + 1

    def thinner(self, covariance: Array, count: Array, share: float) -> Array:
        """(K,) which components have an eigenvalue below `share` times the pooled covariance's, in its own coordinates."""
        pooled = jnp.einsum("k,k...->...", count / count.sum(), covariance, precision=PRECISION)
        return self._any_below(covariance, share * pooled[None])

    def _any_below(self, covariance: Array, least: Array) -> Array:
        return ~jnp.isfinite(cholesky(covariance - least)).all((-2, -1))

    # --- linear algebra --------------------------------------------------------------------
    def factor(self, covariance: Array) -> Array:
        return cholesky(covariance)

    def log_det(self, factor: Array, d: int) -> Array:
        """log |factor|: scalar, or one for each component."""
        return jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)).sum(-1)

    def inverse(self, factor: Array) -> Array:
        return inverse_lower(factor)

    def product(self, left: Array, right: Array) -> Array:
        """left right, of two factors."""
        return left @ right

    def gram(self, root: Array) -> Array:
        """root^T root: the precision, where `root` is an inverse factor."""
        return transpose(root) @ root

    def congruent(self, factor: Array, covariance: Array) -> Array:
        """factor covariance factor^T."""
        return _symmetric(factor @ covariance @ transpose(factor))

    def symmetrized(self, square: Array) -> Array:
        return _symmetric(square)

    def each(self, covariance: Array, k: int, d: int) -> Array:
        """(K, D, D) matrices or (K, D) variances, one for each component."""
        return jnp.broadcast_to(covariance, (k, d, d))

    def outer(self, v: Array) -> Array:
        """v v^T for (K, D), in this shape."""
        return v[..., :, None] * v[..., None, :]

    # --- the density -----------------------------------------------------------------------
    def features(self, x: Array) -> Array:
        """(F, n) quadratic features of (D, n) columns."""
        rows, cols = np.triu_indices(x.shape[0])
        return x[rows] * x[cols]

    def coefficients(self, square: Array) -> Array:
        """(K, F) or (F,) coefficients of `features` for x^T square x."""
        d = square.shape[-1]
        rows, cols = np.triu_indices(d)
        return square[..., rows, cols] * np.where(rows == cols, 1, 2).astype(square.dtype)

    def raw(self, inverse: Array, origin: Array, linear: Array, square: Array) -> tuple[Array, Array, Array]:
        """Turn <linear, y> + <square, y y^T> with y = inverse (x - origin) into constant, linear and square in x."""
        center = self.apply(inverse, origin)
        pull = linear - 2 * self.apply(square, center)
        constant = (self.apply(square, center) * center).sum(-1) - (linear * center).sum(-1)
        return constant, self.apply(transpose(inverse), pull), _symmetric(transpose(inverse) @ square @ inverse)

    def apply(self, square: Array, v: Array) -> Array:
        """square v for (K, D)."""
        return jnp.einsum("...de,...e->...d", square, v, precision=PRECISION)

    def residual_map(self, inverse: Array, origin: Array, linear: Array, square: Array) -> tuple[Array, Array, Array]:
        """A, b and constant with <linear, y> + <square, y y^T> = constant - |A x + b|^2 / 2."""
        lower = cholesky(-2 * _symmetric(square))  # square = -lower lower^T / 2
        shift = self.apply(inverse_lower(lower), linear)
        a = transpose(lower) @ inverse
        b = -(self.apply(a, origin) + shift)
        return a, b, (shift * shift).sum(-1) / 2

    def residuals(self, a: Array, b: Array, x: Array) -> Array:
        """(K, D, n) values A x + b as one matrix product."""
        k, d = b.shape
        return (jnp.matmul(a.reshape(k * d, -1), x, precision=PRECISION) + b.reshape(k * d, 1)).reshape(k, d, -1)

    # --- the estimate ----------------------------------------------------------------------
    def estimate(self, count: Array, square: Array) -> Array:
        """Covariance from the weight (K,) and the centred second moments."""
        return _symmetric(square) / jnp.where(count > 0, count, 1)[:, None, None]

    def clip(self, covariance: Array, floor: Array) -> Array:
        """Eigenvalues raised to `floor`: the constrained maximum of the likelihood.

        A matrix with one below that goes to what rounding may make of zero instead, where that is higher. One that is not
        seen to be below is left alone, however thin: narrow clusters pass through such matrices on their way.
        """
        least = jnp.maximum(floor, 2 * self._rounding(covariance))
        below = self._below(covariance, floor)

        def clipped(c):
            values, vectors = jnp.linalg.eigh(c, symmetrize_input=False)
            raised = (vectors * jnp.maximum(values, least[..., 0])[..., None, :]) @ transpose(vectors)
            return jnp.where(below, _symmetric(raised), c)

        return jax.lax.cond(any_vmapped(below.any()), clipped, lambda c: c, covariance)

    def at_floor(self, covariance: Array, floor: Array) -> Array:
        """Bools that broadcast to the covariance: which components, or variances, lie at what `clip` raises them to."""
        # Once more what rounding may change: eigenvalues are known to that only.
        return self._below(covariance, jnp.maximum(floor, 3 * self._rounding(covariance)))

    def _below(self, covariance: Array, least: Array) -> Array:
        """(..., 1, 1) whether any eigenvalue is less than `least`."""
        return ~jnp.isfinite(cholesky(covariance - least * eye_like(covariance))).all((-2, -1), keepdims=True)

    def _rounding(self, covariance: Array) -> Array:
        """(..., 1, 1) what rounding may make of an eigenvalue zero: D eps times the largest variance.

        The tolerance of `numpy.linalg.matrix_rank`, with the largest variance in place of the largest eigenvalue.
        """
        largest = jnp.diagonal(covariance, axis1=-2, axis2=-1).max(-1)[..., None, None]
        return covariance.shape[-1] * jnp.finfo(covariance.dtype).eps * largest

    def largest_precision(self, inverse: Array) -> Array:
        """About the largest eigenvalue of a precision matrix of any component."""
        return jnp.square(inverse).sum(-2).max()


class Tied(Full):
    """(D, D): one matrix for all components."""

    def shape(self, k: int, d: int) -> tuple[int, ...]:
        return (d, d)

    def identity(self, k: int, d: int, dtype: Any) -> Array:
        return jnp.eye(d, dtype=dtype)

    def n_free(self, k: int, d: int) -> int:
        return d * (d + 1) // 2

    def needed(self, d: int) -> int:
        return 1

    def thinner(self, covariance: Array, count: Array, share: float) -> Array:
        return jnp.zeros(count.shape, bool)

    def outer(self, v: Array) -> Array:
        return jnp.einsum("kd,ke->de", v, v, precision=PRECISION)

    def residuals(self, a: Array, b: Array, x: Array) -> Array:
        return jnp.matmul(a, x, precision=PRECISION)[None] + b[:, :, None]

    def estimate(self, count: Array, square: Array) -> Array:
        return _symmetric(square) / jnp.where(count.sum() > 0, count.sum(), 1)


class Diagonal(Full):
    """(K, D): variances."""

    constraint = sets.Positive()
    affine_kind = "diagonal"

    def shape(self, k: int, d: int) -> tuple[int, ...]:
        return (k, d)

    def identity(self, k: int, d: int, dtype: Any) -> Array:
        return jnp.ones(self.shape(k, d), dtype)

    def n_free(self, k: int, d: int) -> int:
        return k * d

    def needed(self, d: int) -> int:
        return 2

    def _any_below(self, covariance: Array, least: Array) -> Array:
        return (covariance < least).any(-1)

    def factor(self, covariance: Array) -> Array:
        return jnp.sqrt(covariance)

    def log_det(self, factor: Array, d: int) -> Array:
        return jnp.log(factor).sum(-1)

    def inverse(self, factor: Array) -> Array:
        return 1 / factor

    def product(self, left: Array, right: Array) -> Array:
        return left * right

    def gram(self, root: Array) -> Array:
        return root**2

    def congruent(self, factor: Array, covariance: Array) -> Array:
        return covariance * factor**2

    def _wide(self, factor: Array) -> Array:
        return factor

    def each(self, covariance: Array, k: int, d: int) -> Array:
        return jnp.broadcast_to(self._wide(covariance), (k, d))

    def symmetrized(self, square: Array) -> Array:
        return square

    def outer(self, v: Array) -> Array:
        return v * v

    def features(self, x: Array) -> Array:
        return x * x

    def coefficients(self, square: Array) -> Array:
        return square

    def apply(self, square: Array, v: Array) -> Array:
        return self._wide(square) * v

    def raw(self, inverse: Array, origin: Array, linear: Array, square: Array) -> tuple[Array, Array, Array]:
        center = self.apply(inverse, origin)
        pull = linear - 2 * self.apply(square, center)
        constant = (self.apply(square, center) * center).sum(-1) - (linear * center).sum(-1)
        return constant, self.apply(inverse, pull), square * inverse**2

    def residual_map(self, inverse: Array, origin: Array, linear: Array, square: Array) -> tuple[Array, Array, Array]:
        root = jnp.sqrt(-2 * square)
        shift = self.apply(1 / root, linear)
        a = root * inverse
        return a, -(self.apply(a, origin) + shift), (shift * shift).sum(-1) / 2

    def residuals(self, a: Array, b: Array, x: Array) -> Array:
        return self._wide(a)[:, :, None] * x[None] + b[:, :, None]

    def estimate(self, count: Array, square: Array) -> Array:
        return square / jnp.where(count > 0, count, 1)[:, None]

    def clip(self, covariance: Array, floor: Array) -> Array:
        return jnp.maximum(covariance, floor)

    def at_floor(self, covariance: Array, floor: Array) -> Array:
        return covariance <= floor

    def largest_precision(self, inverse: Array) -> Array:
        return (inverse**2).max()


class Spherical(Diagonal):
    """(K,): one variance for each component."""

    affine_kind = "scalar"

    def shape(self, k: int, d: int) -> tuple[int, ...]:
        return (k,)

    def n_free(self, k: int, d: int) -> int:
        return k

    def _any_below(self, covariance: Array, least: Array) -> Array:
        return covariance < least

    def log_det(self, factor: Array, d: int) -> Array:
        return d * jnp.log(factor)

    def _wide(self, factor: Array) -> Array:
        return factor[:, None]

    def outer(self, v: Array) -> Array:
        return (v * v).sum(-1)

    def features(self, x: Array) -> Array:
        return (x * x).sum(0, keepdims=True)

    def coefficients(self, square: Array) -> Array:
        return square[:, None]

    def residuals(self, a: Array, b: Array, x: Array) -> Array:
        return a[:, None, None] * x[None] + b[:, :, None]

    def estimate(self, count: Array, square: Array) -> Array:
        return square / jnp.where(count > 0, count, 1)


SHAPES: dict[str, Full] = {"full": Full(), "tied": Tied(), "diag": Diagonal(), "spherical": Spherical()}
