"""How fast each site evolves: all alike, a gamma density in classes, or free classes."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import gammaln

from jaxem import constraints as sets
from jaxem.numerics.logs import divided
from jaxem.numerics.roots import root_of_decreasing
from jaxem.pytree import static, struct
from jaxem.types import Params

#: Grids, each four times as fine as the one before, on which the shape of a gamma density is looked for.
ZOOMS = 12


@struct
class OneRate:
    """All sites evolve at one rate. The rules for sites that do not: subclasses."""

    n_classes: ClassVar[int] = 1
    n_free_params: ClassVar[int] = 0
    needs_key: ClassVar[bool] = False
    constraints: ClassVar[dict[str, Any]] = {}

    def template(self, dtype: Any) -> Params:
        """Parameters of the right shapes."""
        del dtype
        return {}

    def initialize(self, key: Array | None, dtype: Any) -> Params:
        """Where a fit starts."""
        del key
        return self.template(dtype)

    def classes(self, params: Params) -> tuple[Array, Array]:
        """Rates (C,), of mean one, and weights (C,)."""
        one = jnp.ones((1,), params["lengths"].dtype)
        return one, one

    def update(self, rates: Array, jumps: Array, exposure: Array) -> Array:
        """(C,) rates that maximise the complete-data likelihood, all else given; not scaled. Default: as they are."""
        del jumps, exposure
        return rates

    def m_step(self, params: Params, rates: Array, jumps: Array, exposure: Array, sites: Array) -> Params:
        """New parameters.

        Args:
            params: those at which the expectations were taken.
            rates: (C,) as `update` left them.
            jumps: (C,) expected substitutions.
            exposure: (C,) substitutions expected at a rate of one.
            sites: (C,) expected number of sites.
        """
        del params, rates, jumps, exposure, sites
        return {}


@struct
class GammaRates(OneRate):
    """Rates from a gamma density of mean one in classes of equal weight, each at its mean (Yang 1994).

    Parameter: `shape`; the smaller, the more rates differ. Above 100 it makes no difference.

    Attributes:
        n_classes: C.
    """

    n_classes: int = static(default=4)  # type: ignore[misc]

    n_free_params: ClassVar[int] = 1
    constraints: ClassVar[dict[str, Any]] = {"shape": sets.Positive()}

    def template(self, dtype: Any) -> Params:
        return {"shape": jnp.ones((), dtype)}

    def classes(self, params: Params) -> tuple[Array, Array]:
        weights = jnp.full((self.n_classes,), 1 / self.n_classes, params["shape"].dtype)
        return gamma_classes(params["shape"], self.n_classes), weights

    def m_step(self, params: Params, rates: Array, jumps: Array, exposure: Array, sites: Array) -> Params:
        """The best of ever finer grids about the shape as it was, which is on them: the likelihood cannot fall."""
        del rates, sites

        def value(log_shape: Array) -> Array:
            rates = gamma_classes(jnp.exp(log_shape), self.n_classes)
            return jumps @ jnp.log(rates) - exposure @ rates

        def zoom(i: int, best: Array) -> Array:
            grid = best + 4.0**-i * jnp.linspace(-1, 1, 9, dtype=best.dtype)
            return grid[jax.vmap(value)(grid).argmax()]

        log_shape = jnp.log(params["shape"])
        best = jax.lax.fori_loop(0, ZOOMS, zoom, log_shape)
        return {"shape": jnp.where(value(best) > value(log_shape), jnp.exp(best), params["shape"])}


@struct
class FreeRates(OneRate):
    """Classes with any weights and rates (Yang 1995; Soubrier et al. 2012).

    Parameters: `class_weights` (C,) and `class_shares` (C,), the share of all substitutions that falls to each; the
    rate of a class is its share over its weight, so that the mean rate is one.

    Attributes:
        n_classes: C.
    """

    n_classes: int = static(default=4)  # type: ignore[misc]

    needs_key: ClassVar[bool] = True
    constraints: ClassVar[dict[str, Any]] = {"class_weights": sets.Simplex(), "class_shares": sets.Simplex()}

    @property
    def n_free_params(self) -> int:  # type: ignore[override]
        """Number of free parameters."""
        return 2 * self.n_classes - 2

    def template(self, dtype: Any) -> Params:
        each = jnp.full((self.n_classes,), 1 / self.n_classes, dtype)
        return {"class_weights": each, "class_shares": each}

    def initialize(self, key: Array | None, dtype: Any) -> Params:
        """Equal weights; rates that differ by factors of about e, in rising order."""
        assert key is not None
        rates = jnp.exp(jnp.sort(1.5 * jax.random.normal(key, (self.n_classes,), dtype)))
        return {**self.template(dtype), "class_shares": rates / rates.sum()}

    def classes(self, params: Params) -> tuple[Array, Array]:
        weights = params["class_weights"]
        return divided(params["class_shares"], weights), weights

    def update(self, rates: Array, jumps: Array, exposure: Array) -> Array:
        return jnp.where(exposure > 0, divided(jumps, exposure), rates)

    def m_step(self, params: Params, rates: Array, jumps: Array, exposure: Array, sites: Array) -> Params:
        del params, jumps, exposure
        weights = sites / sites.sum()
        shares = weights * rates
        return {"class_weights": weights, "class_shares": shares / shares.sum()}


#: Largest shape told apart, and terms of the series that it takes.
LARGEST_SHAPE, SERIES = 100.0, 256


def _gamma_below(shape: Array, x: Array) -> Array:
    """Probability that a gamma variable of scale one is below x, by its series, which has derivatives of any order."""
    power = shape + jnp.arange(SERIES, dtype=x.dtype)
    return jnp.exp(power * jnp.log(x[..., None]) - x[..., None] - gammaln(power + 1)).sum(-1)


def gamma_classes(shape: Array, n_classes: int) -> Array:
    """(C,) means of a gamma density of mean one within quantiles of equal weight (Yang 1994, equation 10)."""
    shape = jnp.minimum(shape, LARGEST_SHAPE)
    if n_classes == 1:
        return jnp.ones((1,), shape.dtype)
    below = jnp.arange(1, n_classes, dtype=shape.dtype) / n_classes
    low = jnp.full_like(below, jnp.finfo(shape.dtype).tiny * 1e3)
    high = jnp.full_like(below, 20 + shape + 10 * jnp.sqrt(shape))
    cuts = root_of_decreasing(lambda x: below - _gamma_below(shape, x), low, high)
    # Mass below a cut weighted by the rate: the same with a shape of one more.
    mass = jnp.concatenate([jnp.zeros((1,), shape.dtype), _gamma_below(shape + 1, cuts), jnp.ones((1,), shape.dtype)])
    return n_classes * jnp.diff(mass)
