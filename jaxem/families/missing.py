"""Rows that lack entries: the Gaussian density of what is there, and of what is not given what is.

A covariance in which the rows and columns of missing entries are those of the identity has the Cholesky factor of
the observed block, padded: no shape depends on the pattern (Little and Rubin 2002, section 8.2, has the algebra).
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.numerics.linalg import PRECISION, cholesky, eye_like, inverse_lower
from jaxem.pytree import struct


@struct
class Observed:
    """Gaussian components of which rows show some entries: log p = constant + center - |x - mean|^2 / 2 - normaliser.

    Attributes:
        mean: (K, D).
        covariance: (K, D, D), or (K, D) variances.
        center: (K,) what else multiplies a latent weight of the row, see `StudentT`.
        constant: (K,) what else does not.
        root: (K, M, D, D) or (K, M, D) inverse Cholesky factors for each pattern, or None: to be found row by row.
        log_det: (K, M) their log-determinants, or None.
    """

    mean: Array
    covariance: Array
    center: Array
    constant: Array
    root: Array | None = None
    log_det: Array | None = None

    def terms(self, x: Array, patterns: Array | None) -> tuple[Array, Array, Array]:
        """(K, n) what multiplies a row's weight in its log-density and (K, n) what does not, (n,) the number of entries.

        Args:
            x: (n, D), NaN where missing.
            patterns: (M, D) the table that `root` is for, or None.
        """
        there = ~jnp.isnan(x)
        if self.root is None or patterns is None:
            root, log_det = roots(self.covariance, there)
        else:
            which = (there[:, None] == patterns).all(-1).argmax(-1)
            root, log_det = self.root[:, which], self.log_det[:, which]  # type: ignore[index]
        y = _applied(root, residuals(self.mean, x, there))
        n_there = there.sum(-1).astype(x.dtype)
        quadratic = self.center[:, None] - (y * y).sum(-1) / 2
        return quadratic, self.constant[:, None] + log_det - n_there * math.log(2 * math.pi) / 2, n_there


def residuals(mean: Array, x: Array, there: Array) -> Array:
    """(K, n, D) x - mean, zero where missing."""
    return jnp.where(there, jnp.where(there, x, 0) - mean[:, None], 0)


def roots(covariance: Array, masks: Array) -> tuple[Array, Array]:
    """Inverse factors of the observed block for each of the `masks` (M, D), and the logarithms of their determinants.

    Returns:
        (K, M, D, D), or (K, M, D) where `covariance` is (K, D) variances; and (K, M).
    """
    if covariance.ndim == 2:
        root = jnp.where(masks, 1 / jnp.sqrt(covariance)[:, None], 1)
        return root, jnp.log(root).sum(-1)
    pairs = masks[:, :, None] & masks[:, None, :]
    masked = jnp.where(pairs, covariance[:, None], eye_like(covariance)[:, None])
    root = inverse_lower(cholesky(masked))
    return root, jnp.log(jnp.diagonal(root, axis1=-2, axis2=-1)).sum(-1)


def _applied(root: Array, v: Array) -> Array:
    return root * v if root.ndim == v.ndim else jnp.einsum("knde,kne->knd", root, v, precision=PRECISION)


def conditional_means(mean: Array, covariance: Array, x: Array) -> Array:
    """(K, n, D) rows with E[x_missing | x_observed] in place of what is missing.

    Args:
        mean: (K, D).
        covariance: (K, D, D), or (K, D) variances.
        x: (n, D), NaN where missing.
    """
    there = ~jnp.isnan(x)
    if covariance.ndim == 2:
        return jnp.where(there, x, mean[:, None])
    root, _ = roots(covariance, there)
    y = _applied(root, residuals(mean, x, there))
    pull = jnp.einsum("kned,kne->knd", root, y, precision=PRECISION)
    return jnp.where(there, x, mean[:, None] + jnp.einsum("kde,kne->knd", covariance, pull, precision=PRECISION))


def filled(x: Array) -> Array:
    """(N, D) rows with the mean of its column in place of what is missing."""
    there = ~jnp.isnan(x)
    mean = jnp.where(there, x, 0).sum(0) / jnp.maximum(there.sum(0), 1)
    return jnp.where(there, x, mean)


#: Rows that share a pattern, on average, from which on a table of patterns is worth its gathers.
ROWS_A_PATTERN = 2


def patterns_of(x: np.ndarray) -> np.ndarray | None:
    """(M, D) bools, the patterns in which rows (N, D) show their entries; None where few rows share one."""
    table = np.unique(~np.isnan(x), axis=0)
    return table if len(table) * ROWS_A_PATTERN <= len(x) else None
