"""Conjugate priors, as pseudo-statistics: log-prior = <pseudo-statistics, natural parameters>, up to a constant."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.pytree import PyTree, struct


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
class Smoothness:
    """Quadratic prior on differences of neighbours, log-density -strength / 2 * sum (x_i - x_j)^2 (Levitan and Herman 1987).

    Neighbours are next to each other along one axis: 4 in an image, 6 in a volume.

    Attributes:
        strength: beta >= 0, in units of log-likelihood over squared rate.
    """

    strength: float | Array = 1.0

    def log_density(self, x: Array) -> Array:
        """Logarithm of the density at x, of any shape, but for a constant."""
        steps = [jnp.square(jnp.diff(x, axis=axis)).sum() for axis in range(x.ndim)]
        return -self.strength / 2 * jnp.stack(steps).sum()

    def curvature(self, x: Array) -> Array:
        """In the shape of x: 2 beta times the number of neighbours.

        A quadratic of this curvature in each entry by itself lies below the log-density and touches it at the current
        x: by convexity (x_i - x_j)^2 <= (2 x_i - s)^2 / 2 + (2 x_j - s)^2 / 2, s the current x_i + x_j (De Pierro 1995).
        """
        ends = [2 * (np.arange(n) > 0) + 2 * (np.arange(n) < n - 1) for n in x.shape]
        return self.strength * jnp.asarray(sum(np.ix_(*ends)), x.dtype)


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

    @classmethod
    def mclust(cls, data: Any, n_components: int, covariance: str = "full") -> NormalInverseWishart:
        """The default of the R package mclust (Fraley and Raftery 2007, section 3), which keeps components from collapsing.

        Args:
            data: (N, D).
            n_components: K.
            covariance: as `Gaussian` has it.
        """
        x = np.asarray(data, np.float64)
        d = x.shape[1]
        spread = np.cov(x, rowvar=False).reshape(d, d)
        if covariance in ("diag", "spherical"):
            spread = np.full((d,) if covariance == "diag" else (), np.trace(spread) / d)
        return cls(mean=x.mean(0), strength=0.01, df=d + 2.0, scale=spread / n_components ** (2 / d))

    def rescaled(self, affine: Any) -> NormalInverseWishart:
        """The same prior in new coordinates."""
        change = affine.matrices if jnp.ndim(self.scale) == 2 else affine.covariances
        return NormalInverseWishart(affine.means(self.mean), self.strength, self.df, change(self.scale))

    def pseudo_stats(self, family: Any, template: PyTree) -> PyTree:
        """Pseudo-statistics shaped like `family.natural`, about the family's origin."""
        shape, kind = family.shape, family.covariance
        (k, d), dtype = template["mean"].shape, template["mean"].dtype
        mean = jnp.broadcast_to(jnp.asarray(self.mean, dtype), (k, d))
        tied = kind == "tied"
        scale = jnp.asarray(self.scale, dtype)
        scale = scale if tied else jnp.broadcast_to(scale, template["covariance"].shape)
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
