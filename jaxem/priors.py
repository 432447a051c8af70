"""Conjugate priors, as pseudo-statistics: log-prior = <pseudo-statistics, natural parameters>, up to a constant."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxem.types import struct

PyTree = Any


@struct
class Dirichlet:
    """Dirichlet prior on probabilities.

    Attributes:
        concentration: alpha > 0, a number or one for each entry. The mode needs alpha >= 1.
    """

    concentration: float | Array = 1.0

    def pseudo_counts(self, like: Array) -> Array:
        """alpha - 1, in the shape of the probabilities."""
        return jnp.broadcast_to(jnp.asarray(self.concentration, like.dtype) - 1, like.shape)


@struct
class GammaPrior:
    """Gamma prior on a positive rate, density proportional to rate^(shape - 1) exp(-rate * inverse_scale).

    Attributes:
        shape: > 0; the mode needs shape >= 1.
        inverse_scale: > 0, in units of 1 / rate.
    """

    shape: float | Array = 1.0
    inverse_scale: float | Array = 0.0


@struct
class NormalInverseWishart:
    """Normal-inverse-Wishart prior on a mean and a covariance (Fraley and Raftery 2007, section 2).

    Sigma ~ inverse-Wishart(df, scale), mean | Sigma ~ Normal(mean, Sigma / strength). For "diag" it is a
    normal-inverse-gamma prior on each column, for "spherical" one on the common variance.

    Attributes:
        mean: (D,).
        strength: kappa >= 0, pseudo-observations of the mean; 0 leaves the mean free.
        df: nu, degrees of freedom.
        scale: (D, D) for "full" and "tied", (D,) for "diag", () for "spherical".
    """

    mean: Array
    strength: float | Array
    df: float | Array
    scale: Array

    def changed(self, affine: Any) -> NormalInverseWishart:
        """The same prior in new coordinates."""
        change = affine.matrices if jnp.ndim(self.scale) == 2 else affine.covariances
        return NormalInverseWishart(affine.means(self.mean), self.strength, self.df, change(self.scale))

    def pseudo_stats(self, family: Any, blank: PyTree) -> PyTree:
        """Pseudo-statistics shaped like `family.natural`, about the family's origin."""
        shape, kind = family.shape, family.covariance
        (k, d), dtype = blank["mean"].shape, blank["mean"].dtype
        mean = jnp.broadcast_to(jnp.asarray(self.mean, dtype), (k, d))
        tied = kind == "tied"
        scale = jnp.asarray(self.scale, dtype)
        scale = scale if tied else jnp.broadcast_to(scale, blank["covariance"].shape)
        if family.origin is not None:
            mean = shape.apply(family.inverse, mean - family.origin)
            scale = shape.congruent(family.inverse, scale)
        strength = jnp.asarray(self.strength, dtype)
        # Exponents of |Sigma|^(-1/2): df + dimension + 1 from the inverse-Wishart, 1 from the normal.
        width = {"full": d, "tied": d, "diag": 1, "spherical": 1}[kind]
        own = (jnp.asarray(self.df, dtype) + width + 1) / (k if tied else 1)
        log_det = (own + d) / d if kind == "spherical" else own + 1
        return {
            "log_det": jnp.broadcast_to(log_det, (k,)),
            "center": jnp.broadcast_to(strength, (k,)),
            "linear": strength * mean,
            "square": scale + shape.outer(jnp.sqrt(strength) * mean),
        }
