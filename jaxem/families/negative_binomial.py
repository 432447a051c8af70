"""Counts that vary more than Poisson's: a gamma mixture of Poisson densities, whose rates are latent."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem import constraints as sets
from jaxem.families.base import Family, columns
from jaxem.families.poisson import validate_counts
from jaxem.numerics.special import ceiling, gamma_normalizer, gamma_shape, scored_shape, stirling_rest
from jaxem.pytree import PyTree, struct
from jaxem.types import Params

#: Least estimated size: nearly all counts are zero. The greatest is relative to the mean, by which the variance exceeds
#: that of Poisson.
LEAST_SIZE = 1e-4


def _greatest_size(mean: Array) -> Array:
    return jnp.maximum(ceiling(mean.dtype) * mean, 1)


def _least_mean(dtype: Any) -> Array:
    return jnp.sqrt(jnp.finfo(dtype).tiny)  # its inverse times a size is finite


@struct
class NegativeBinomial(Family):
    """Negative binomial density; parameters `mean` and `size`, (K,) for data (N,), (K, D) for data (N, D).

    The variance is mean + mean^2 / size. Each count is Poisson with a latent rate, mean * u with u from a gamma
    density of mean one and shape `size` (Greenwood and Yule 1920), which makes the M-step that of a gamma density.
    Rates are measured in units of the current means (`centered`): near Poisson, where u hardly varies, nothing cancels.
    """

    origin: Any = None

    absent: ClassVar[float] = -1

    @property
    def constraints(self) -> dict[str, Any]:
        return {"mean": sets.Positive(), "size": sets.Positive()}

    def centered(self, params: Params) -> NegativeBinomial:
        return dataclasses.replace(self, origin=params["mean"])

    def recentered(self, stats: PyTree, params: Params) -> PyTree:
        """Moments of u' = c u from those of u."""
        c, count = self.origin / params["mean"], stats["normalizer"]
        size = stats["size"] + (jnp.log(c) + 1 - c) * count + (1 - c) * stats["linear"]
        return {**stats, "size": size, "linear": c * stats["linear"] + (c - 1) * count}

    def natural(self, params: Params) -> dict[str, Array]:
        """Leaves `size` (t = log u - u + 1), `linear` (t = u - 1) and `normalizer` (t = 1), with u = rate / origin."""
        mean, size = params["mean"], params["size"]
        origin = jnp.ones_like(mean) if self.origin is None else self.origin
        linear = size * (mean - origin) / mean
        normalizer = gamma_normalizer(size) + size * jnp.log(origin / mean) + linear
        return {"size": size, "linear": linear, "normalizer": normalizer}

    def scores(self, natural: PyTree, data: Array) -> Array:
        x = columns(data)
        k = natural["size"].shape[0]
        size, linear, normalizer = (natural[name].reshape(k, -1, 1) for name in ("size", "linear", "normalizer"))
        origin = jnp.ones_like(size) if self.origin is None else self.origin.reshape(k, -1, 1)
        # The integral over u leaves gammaln(x + size) - (x + size) log(origin + size - linear) - linear. By Stirling's
        # formula, for gammaln(x + 1) too; what multiplies x is small where counts are large.
        mixed = size > 0
        known = jnp.where(mixed, size, 1)
        whole = origin + known
        tilt = jnp.where(mixed, linear, 0) / whole
        # log((x + known) / (x + 1)) - log(1 + known / origin): of large sizes little is left.
        of_count = jnp.log1p((known * (origin - x - 1) - origin) / ((x + 1) * whole))
        of_size = jnp.log1p((x - origin) / whole)
        # Of what is linear in u - 1 the derivative keeps its digits: near Poisson u hardly varies.
        of_tilt = tilt * (x - origin) - (x + known) * (jnp.log1p(-tilt) + tilt)
        rest = stirling_rest(x + known) - jnp.log(x + known) / 2 - stirling_rest(x + 1) - jnp.log(x + 1) / 2 + 1
        density = x * of_count + known * of_size + of_tilt + rest
        # Natural parameters of zero ask for moments: linear in them, with u = x.
        moments = linear * x + size * x * x
        return (normalizer + jnp.where(mixed, density, moments)).sum(1)

    def m_step(self, stats: PyTree, params: Params) -> Params:
        """Gamma estimates from the latent rates; a component without data keeps its parameters."""
        count = stats["normalizer"]
        present = count > 0
        count = jnp.where(present, count, 1)
        origin = 1 if self.origin is None else self.origin
        gap = jnp.where(present, jnp.maximum(stats["linear"] / count, jnp.finfo(count.dtype).eps - 1), 0)
        mean = jnp.maximum(origin + origin * gap, _least_mean(count.dtype))
        # About the new mean: log(u / (1 + gap)) - u / (1 + gap) + 1.
        statistic = stats["size"] / count + gap - jnp.log1p(gap)
        return {
            "mean": jnp.where(present, mean, params["mean"]),
            "size": jnp.where(present, gamma_shape(statistic, LEAST_SIZE, _greatest_size(mean)), params["size"]),
        }

    def at_limit(self, params: Params) -> dict[str, Array]:
        """Sizes at which the density is Poisson's."""
        return {**super().at_limit(params), "size": params["size"] >= 0.999 * _greatest_size(params["mean"])}

    def scoring_step(self, stats: PyTree, params: Params, new: Params) -> Params:
        """Towards Poisson, the limit, EM creeps: the size, and the mean, whose maximum given that is the mean count."""
        count, mean, size = stats["normalizer"], params["mean"], params["size"]
        present = count > 0
        count = jnp.where(present, count, 1)
        known = mean * (mean / 2)  # Var((x - mean)^2 - x) / 4 of a Poisson x
        scored = scored_shape(stats["size"] / count, size, known, LEAST_SIZE, _greatest_size(mean))
        counted = jnp.maximum(mean + stats["linear"] / count * (mean + size), _least_mean(count.dtype))
        return {"mean": jnp.where(present, counted, mean), "size": jnp.where(present, scored, size)}

    def start(self, stats: PyTree, template: Params) -> Params:
        """Moments; the statistics are those of natural parameters of zero."""
        count = stats["normalizer"]
        present = count > 0
        count = jnp.where(present, count, 1)
        mean = jnp.maximum(stats["linear"] / count, 1e-3)
        excess = stats["size"] / count - mean**2 - mean
        size = jnp.clip(mean**2 / jnp.maximum(excess, 1e-6), 1e-2, 1e2 * jnp.maximum(mean, 1))
        return {"mean": jnp.where(present, mean, template["mean"]), "size": jnp.where(present, size, template["size"])}

    def template(self, data: Array, n_components: int) -> Params:
        one = jnp.ones((n_components, *data.shape[1:]), data.dtype)
        return {"mean": one, "size": one}

    def validate(self, data: Any) -> Any:
        return validate_counts(data)

    def n_free_params(self, n_components: int, data: Array) -> int:
        return 2 * n_components * int(np.prod(data.shape[1:], dtype=int))

    def sample(self, key: Array, params: Params, component: Array) -> Array:
        mean, size = params["mean"][component], params["size"][component]
        first, second = jax.random.split(key)
        rate = mean * jax.random.gamma(first, size, dtype=size.dtype) / size
        return jax.random.poisson(second, rate).astype(rate.dtype)
