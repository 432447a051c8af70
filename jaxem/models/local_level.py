"""The local-level model: a random walk plus noise (Harvey 1989; Durbin and Koopman 2012, chapter 2)."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem import constraints as sets
from jaxem.latents.gaussian_chain import log_partition
from jaxem.types import Model, Params, Rows, struct
from jaxem.validation import check_size, floating, numeric

PyTree = Any


@struct
class LocalLevel(Model):
    """y_t = x_t + noise of variance `observation`, x_t = x_{t-1} + a step of variance `level`.

    Parameters: `level` and `observation`, the two variances.
    Data: (B, T) series; `fit` takes a single (T,) series too.

    Attributes:
        initial_variance: variance of x_1, whose mean is zero; large is nearly diffuse.
    """

    initial_variance: float | Array = 1e7

    constraints: ClassVar[Any] = {"level": sets.Positive(), "observation": sets.Positive()}
    needs_key: ClassVar[bool] = False

    def natural(self, params: Params) -> dict[str, Array]:
        """Leaves -1 / (2 variance), t = sum of squares, and -log(variance) / 2, t = their number."""
        level, observation = params["level"], params["observation"]
        return {
            "level_precision": -1 / (2 * level),
            "level_log": -jnp.log(level) / 2,
            "observation_precision": -1 / (2 * observation),
            "observation_log": -jnp.log(observation) / 2,
        }

    def log_marginal(self, natural: PyTree, data: Array, rows: Rows) -> Array:
        del rows
        n_times = data.shape[1]
        level, observation = -1 / (2 * natural["level_precision"]), -1 / (2 * natural["observation_precision"])
        # The filter uses the log-normalisers that belong to its variances: the leaves replace them.
        steps = (n_times - 1) * (natural["level_log"] + jnp.log(level) / 2)
        noises = n_times * (natural["observation_log"] + jnp.log(observation) / 2)
        return log_partition(data, level, observation, self.initial_variance) + steps + noises

    def m_step(self, stats: PyTree, params: Params) -> Params:
        """Mean squared steps and noises (Shumway and Stoffer 1982, equations 13 and 14)."""

        def mean(name: str) -> Array:
            count = stats[name + "_log"]
            return jnp.where(count > 0, stats[name + "_precision"] / jnp.where(count > 0, count, 1), params[name])

        return {"level": mean("level"), "observation": mean("observation")}

    def validate(self, data: Any) -> np.ndarray:
        """(B, T) floats.

        Raises:
            ValueError: for a wrong rank, or fewer than two times.
        """
        array = numeric(data, "data")
        if array.ndim not in (1, 2):
            raise ValueError(f"data must have shape (T,) or (B, T); got shape {array.shape}")
        check_size(array, "data")
        array = np.atleast_2d(array)
        if array.shape[1] < 2:
            raise ValueError(f"data must have at least 2 times; got shape {array.shape}")
        return floating(array, "data")

    def blank(self, data: Array) -> Params:
        return {"level": jnp.ones((), data.dtype), "observation": jnp.ones((), data.dtype)}

    def initialize(self, key: Array | None, data: Array, weight: Array) -> Params:
        """Equal variances that explain the mean squared difference, level + 2 observation."""
        del key
        squared = jnp.square(jnp.diff(data, axis=1)).mean(1)
        variance = (weight @ squared) / weight.sum() / 3
        variance = jnp.where(variance > 0, variance, 1)
        return {"level": variance, "observation": variance}

    def n_free_params(self, data: Array) -> int:
        del data
        return 2

    def sample(self, key: Array, params: Params, n: int, n_times: int = 100) -> Array:
        """(n, n_times) series."""
        keys = jax.random.split(key, 3)
        dtype = params["level"].dtype
        first = jnp.sqrt(jnp.asarray(self.initial_variance, dtype)) * jax.random.normal(keys[0], (n, 1), dtype)
        steps = jnp.sqrt(params["level"]) * jax.random.normal(keys[1], (n, n_times - 1), dtype)
        noise = jnp.sqrt(params["observation"]) * jax.random.normal(keys[2], (n, n_times), dtype)
        return jnp.cumsum(jnp.concatenate([first, steps], 1), 1) + noise

    def sample_like(self, key: Array, params: Params, data: Array) -> Array:
        """Series of the length of those in `data`."""
        return self.sample(key, params, *data.shape)
