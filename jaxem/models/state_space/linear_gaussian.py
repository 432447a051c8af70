"""A response that is linear in what explains it, plus Gaussian noise, from expected moments; any entry may be known."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.families.covariance import Full
from jaxem.numerics.linalg import PRECISION, eye_like, inverse_spd, least_squares, transpose
from jaxem.numerics.logs import divided
from jaxem.pytree import static, struct

NOISES = ("full", "diag")


@struct
class System:
    """A linear system as its natural parameters have it.

    Attributes:
        matrix: (D, W).
        noise: (D, D), or (D,) variances.
        tilt: (W, W), or (D, W, W), and `log_tilt` (), or (D,): what the complete-data log-density of a step has beyond
            its Gaussian one, z' tilt z + log_tilt. Zero at natural parameters that come from parameters; their
            gradients are statistics.
    """

    matrix: Array
    noise: Array
    tilt: Array | float = 0.0
    log_tilt: Array | float = 0.0


@struct
class LinearGaussian:
    """y = M z + Normal(0, S), y (D,), z (W,), both perhaps latent: the natural parameters, their way back, the M-step.

    Statistics are those of residuals about the current M (`centered`), so that a good fit does not cancel. With noise "diag"
    each row of y has statistics of its own, so that rows may be missing.

    Attributes:
        noise: "full" or "diag".
        fixed: (D, W) known entries of M, NaN where free; None: all free.
        fixed_noise: known entries of S in its shape, NaN where free; None: all free. Rows of variance zero are exact.
        floor: least variance, or eigenvalue, of free noise: a number, or (D,), of which full noise takes the least.
        origin: (D, W) about which the statistics are; None: zero.
    """

    noise: str = static(NOISES)
    fixed: Any = None
    fixed_noise: Any = None
    floor: Any = 0.0
    origin: Any = None

    @property
    def diagonal(self) -> bool:
        return self.noise == "diag"

    @property
    def is_maximum(self) -> bool:
        """Whether the M-step is the joint maximum: rows that share noise but not their known entries wait for each other."""
        return self.diagonal or self.fixed is None

    def centered(self, matrix: Array) -> LinearGaussian:
        """With statistics about `matrix`."""
        return dataclasses.replace(self, origin=matrix)

    def _noisy(self, d: int) -> Array:
        """(D,) which rows have noise."""
        if self.fixed_noise is None:
            return jnp.ones(d, bool)
        return jnp.asarray(self.fixed_noise if self.diagonal else jnp.diagonal(self.fixed_noise)) != 0

    def _inverse(self, square: Array) -> tuple[Array, Array, Array]:
        """Of the rows that have noise: inverse of noise or precision, its log-determinant, and log(2 pi) times their number."""
        noisy = self._noisy(square.shape[0])
        if self.diagonal:
            value = jnp.where(noisy, square, 1)
            return jnp.where(noisy, 1 / value, 0), jnp.log(value), math.log(2 * math.pi) * noisy.astype(square.dtype)
        pair = noisy[:, None] & noisy
        inverse, log_det = inverse_spd(jnp.where(pair, square, eye_like(square)))
        return jnp.where(pair, inverse, 0), log_det, math.log(2 * math.pi) * noisy.sum().astype(square.dtype)

    def _times(self, square: Array, matrix: Array) -> Array:
        return square[:, None] * matrix if self.diagonal else jnp.matmul(square, matrix, precision=PRECISION)

    def _gram(self, precision: Array, matrix: Array) -> Array:
        """matrix' precision matrix, (W, W), or (D, W, W) row by row."""
        if self.diagonal:
            return precision[:, None, None] * matrix[:, :, None] * matrix[:, None]
        return jnp.matmul(matrix.T, self._times(precision, matrix), precision=PRECISION)

    def natural(self, matrix: Array, noise: Array) -> dict[str, Array]:
        """Leaves `square` (t = r r'), `cross` (t = r z'), `gram` (t = z z') and `log` (t = 1), r = y - origin z."""
        change = matrix if self.origin is None else matrix - self.origin
        precision, log_det, size = self._inverse(noise)
        return {
            "square": -precision / 2,
            "cross": self._times(precision, change),
            "gram": -self._gram(precision, change) / 2,
            "log": -(log_det + size) / 2,
        }

    def system(self, natural: dict[str, Array]) -> System:
        """The system that has these natural parameters; each leaf counts by itself."""
        square, gram = natural["square"], (natural["gram"] + transpose(natural["gram"])) / 2
        precision = -2 * square if self.diagonal else -(square + square.T)
        noise, log_det, size = self._inverse(precision)
        change = self._times(noise, natural["cross"])
        matrix = change if self.origin is None else self.origin + change
        tilt = gram + self._gram(precision, change) / 2
        return System(matrix, noise, tilt, natural["log"] + (size - log_det) / 2)

    def statistics(
        self, weight: Array, residual: Array, z: Array, noise: Array, cross: Array, spread: Array
    ) -> dict[str, Array]:
        """Expected statistics of (n, T) steps, shaped like `natural`.

        Args:
            weight: (n, T), or (n, T, D) for noise "diag".
            residual: (n, T, D) mean of r.
            z: (n, T, W) mean of z.
            noise: (n, T, D, D) covariance of r.
            cross: (n, T, D, W) covariance of r and z.
            spread: (n, T, W, W) covariance of z.
        """
        lead = (-1,)
        weight = weight.reshape(lead + weight.shape[2:])
        residual, z, noise, cross, spread = (x.reshape(lead + x.shape[2:]) for x in (residual, z, noise, cross, spread))
        cross, spread = cross + residual[..., :, None] * z[..., None, :], spread + z[..., :, None] * z[..., None, :]
        total = lambda spec, *x: jnp.einsum(spec, *x, precision=PRECISION)  # noqa: E731
        if self.diagonal:
            square = jnp.diagonal(noise, axis1=-2, axis2=-1) + residual**2
            return {
                "square": (weight * square).sum(0),
                "cross": total("md,mdw->dw", weight, cross),
                "gram": total("md,mvw->dvw", weight, spread),
                "log": weight.sum(0),
            }
        square = noise + residual[..., :, None] * residual[..., None, :]
        return {
            "square": total("m,mde->de", weight, square),
            "cross": total("m,mdw->dw", weight, cross),
            "gram": total("m,mvw->vw", weight, spread),
            "log": weight.sum(),
        }

    def m_step(self, stats: dict[str, Array], matrix: Array, noise: Array) -> tuple[Array, Array]:
        """Least squares and the mean square of what it leaves, from statistics about `matrix`; what has no data stays.

        Known entries of M with noise that correlates the rows: generalized least squares at the current noise, an ECM
        step (Meng and Rubin 1993; Holmes 2013, section 4.2).
        """
        count, square, cross = stats["log"], stats["square"], stats["cross"]
        gram = (stats["gram"] + transpose(stats["gram"])) / 2
        free = None if self.fixed is None else jnp.isnan(jnp.asarray(self.fixed))
        if self.is_maximum or free is None:
            change = least_squares(jnp.broadcast_to(gram, (len(cross), *gram.shape[-2:])), cross, free)
        else:
            precision = self._inverse(noise)[0]
            system = (precision[:, None, :, None] * gram[None, :, None, :]).reshape(cross.size, cross.size)
            right = self._times(precision, cross).reshape(-1)
            change = least_squares(system, right, free.reshape(-1)).reshape(cross.shape)
        if self.diagonal:
            again = jnp.einsum("dv,dvw,dw->d", change, gram, change, precision=PRECISION)
            left = square - 2 * (change * cross).sum(-1) + again
        else:
            again = jnp.matmul(jnp.matmul(change, gram, precision=PRECISION), change.T, precision=PRECISION)
            explained = jnp.matmul(change, cross.T, precision=PRECISION)
            left = square + again - 2 * explained
            left = (left + left.T) / 2
        return matrix + change, jnp.where(count > 0, self._floored(divided(left, count)), noise)

    def _split(self, noise: Array) -> tuple[Array | bool, Array]:
        """Which entries of the noise are known, and the noise with a neutral value, well above the floor, in their place."""
        if self.fixed_noise is None:
            return False, noise
        known = ~jnp.isnan(jnp.asarray(self.fixed_noise))
        neutral = 2 * jnp.max(jnp.asarray(self.floor)) + 1
        return known, jnp.where(known, neutral if self.diagonal else neutral * eye_like(noise), noise)

    def _floored(self, noise: Array) -> Array:
        """Noise with its floor and its known entries."""
        known, free = self._split(noise)
        tiny = jnp.finfo(noise.dtype).tiny
        floor = jnp.asarray(self.floor, noise.dtype)
        new = jnp.maximum(free, floor + tiny) if self.diagonal else Full().clip(free, floor.min())
        return new if self.fixed_noise is None else jnp.where(known, jnp.asarray(self.fixed_noise, noise.dtype), new)

    def free(self, noise: Array) -> Array:
        """Which entries of the noise are free (bools like it)."""
        return jnp.broadcast_to(jnp.logical_not(self._split(noise)[0]), noise.shape)

    def at_floor(self, noise: Array) -> Array:
        """Which free entries lie at their floor (bools like the noise); of noise that is not diagonal all or none do."""
        known, free = self._split(noise)
        floor = jnp.asarray(self.floor, noise.dtype)
        return (free <= floor if self.diagonal else Full().at_floor(free, floor.min())) & jnp.logical_not(known)

    def check(self, name: str, noise_name: str) -> None:
        """Raise ValueError for known noise that no M-step can keep; `name` is that of the matrix."""
        if self.fixed_noise is None:
            return
        noise = np.asarray(self.fixed_noise, float)
        variance = noise if self.diagonal else np.diagonal(noise)
        if (variance < 0).any():
            raise ValueError(f"fixed[{noise_name!r}] must hold variances of at least 0; got {variance.min()}")
        exact = variance == 0
        if exact.any() and (self.fixed is None or np.isnan(np.asarray(self.fixed, float))[exact].any()):
            row = int(np.argmax(exact))
            raise ValueError(f"fixed[{noise_name!r}] has no noise in row {row}: then that row of {name} must be fixed too")
        if not self.diagonal:
            self._check_blocks(noise, noise_name)

    def _check_blocks(self, noise: np.ndarray, name: str) -> None:
        if not np.array_equal(noise, noise.T, equal_nan=True):
            raise ValueError(f"fixed[{name!r}] must be symmetric, with NaN where NaN is; got {noise}")
        linked = np.isnan(noise) | (noise != 0) | np.eye(len(noise), dtype=bool)
        for _ in noise:
            linked = (linked.astype(int) @ linked.astype(int)) > 0
        for i, row in enumerate(linked):
            block = np.isnan(noise[np.ix_(row, row)])
            if block.any() and not block.all():
                wanted = "free or fixed block by block, with zeros between blocks"
                raise ValueError(f"fixed[{name!r}] must be {wanted}; the block of row {i} is fixed in part")
        if (
            np.linalg.eigvalsh(np.where(np.isnan(noise), np.eye(len(noise)), noise))
            < -1e-8 * np.nanmax(np.abs(noise), initial=1)
        ).any():
            raise ValueError(f"fixed[{name!r}] must be positive semidefinite where it is fixed; got {noise}")
