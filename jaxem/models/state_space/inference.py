"""What a fitted state space model tells: states smoothed and filtered, draws of them, fitted values and forecasts."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import ndtri

from jaxem.data.sequences import Sequences, as_sequences
from jaxem.data.validation import check_positive_int
from jaxem.latents import gaussian_chain, kalman
from jaxem.latents.gaussian_chain import GaussianChain
from jaxem.model import one_program
from jaxem.models.chains.inference import future_inputs, squeeze
from jaxem.models.state_space.series import as_series
from jaxem.numerics.linalg import PRECISION, semi_cholesky
from jaxem.pytree import PyTree, struct
from jaxem.types import Params


@struct
class GaussianPath:
    """A Gaussian distribution at each step of B series; without the axis B for one series given as an array.

    Attributes:
        mean: (B, T, K) or (T, K); NaN where the data do not determine a diffuse state.
        covariance: (B, T, K, K) or (T, K, K), infinite there.
    """

    mean: Array
    covariance: Array

    @property
    def std(self) -> Array:
        """Standard deviations in the shape of `mean`."""
        return jnp.sqrt(jnp.maximum(jnp.diagonal(self.covariance, axis1=-2, axis2=-1), 0))

    def interval(self, level: float = 0.9) -> tuple[Array, Array]:
        """Lower and upper ends, in the shape of `mean`, between which each entry lies with probability `level`."""
        reach = ndtri((1 + level) / 2).astype(self.mean.dtype) * self.std
        mean = jnp.where(reach == jnp.inf, 0, self.mean)
        return mean - reach, mean + reach


@struct
class StateForecast:
    """What comes after the end of each series, h = 1 .. H steps ahead.

    Attributes:
        states: of the K states.
        observations: of the D observations.
    """

    states: GaussianPath
    observations: GaussianPath


class StateInference:
    """Methods over `chain(params, data)`. One series given as an array comes back without the axis B."""

    n_states: int
    initial: str

    def chain(self, params: Params, data: PyTree) -> tuple[GaussianChain, Array]:
        """The chain of states with what the data say of each, and (B,) log-normalisers."""
        raise NotImplementedError

    @one_program
    def posterior(self, params: Params, data: PyTree) -> GaussianPath:
        """Smoothed states p(x_t | all y), (B, T, K); beyond a series' end what is to come."""
        found = self._smoothed(params, data)
        return squeeze(GaussianPath(*kalman.at_limit(found.mean, found.covariance, found.wide)), data)

    def _smoothed(self, params: Params, data: PyTree) -> kalman.Smoothed:
        """Smoothed states; NaN for a series of probability zero, such as one that contradicts what is certain."""
        found = kalman.smooth(self.chain(params, data)[0], limits=True)
        possible = jnp.isfinite(found.log_mass)
        answered = lambda x: jnp.where(possible.reshape(-1, *(1,) * (x.ndim - 1)), x, jnp.nan)  # noqa: E731
        return dataclasses.replace(found, mean=answered(found.mean), covariance=answered(found.covariance))

    @one_program
    def lag_one(self, params: Params, data: PyTree) -> Array:
        """(B, T - 1, K, K) covariances of x_{t+1} and x_t given all y, the later state first."""
        chain, _ = self.chain(params, data)
        return squeeze(kalman.lag_one(chain, kalman.smooth(chain)), data)

    @one_program
    def filter(self, params: Params, data: PyTree) -> GaussianPath:
        """Causal states p(x_t | y up to t), (B, T, K); unbounded where a diffuse state is not determined yet."""
        found = kalman.filtered(self.chain(params, data)[0])
        return squeeze(GaussianPath(found.mean, found.covariance), data)

    def sample_posterior(self, key: Array, params: Params, data: PyTree, n_samples: int = 1) -> Array:
        """(n_samples, B, T, K) paths of the states drawn from p(x | y)."""
        return squeeze(gaussian_chain.sample_posterior(key, self.chain(params, data)[0], n_samples), data, 1)

    @one_program
    def predict(self, params: Params, data: PyTree) -> GaussianPath:
        """Fitted values: observations without their noise given all y, (B, T, D); in place of missing ones, imputations."""
        series = as_series(data)
        found = self._smoothed(params, series)
        return squeeze(self._observed(params, found.mean, found.covariance, found.wide, series.inputs), data)

    def _observed(self, params: Params, mean: Array, covariance: Array, wide: Array | None, inputs: Array) -> GaussianPath:
        matrix = jnp.asarray(params["observation"])
        signal = jnp.matmul(mean, matrix.T, precision=PRECISION)
        if "observation_input" in params:
            signal = signal + jnp.matmul(inputs, params["observation_input"].T, precision=PRECISION)
        through = lambda m, x: gaussian_chain.mul(m, x, m.T)  # noqa: E731
        if wide is not None:
            size = through(jnp.abs(matrix), jnp.abs(wide))
            wide = through(matrix, wide)
            wide = jnp.where(jnp.abs(wide) > jnp.sqrt(jnp.finfo(wide.dtype).eps) * size, wide, 0)
        return GaussianPath(*kalman.at_limit(signal, through(matrix, covariance), wide))

    def forecast(self, params: Params, data: PyTree, n_steps: int, inputs: Any = None) -> StateForecast:
        """What comes after each series, exactly.

        Args:
            params: parameters.
            data: series up to now.
            n_steps: H, how far ahead.
            inputs: (B, H, P), or (H, P) for one series as an array: inputs to come, where the model has inputs.

        Raises:
            ValueError: for inputs that the model lacks, or of another shape.
        """
        params, series = jax.tree.map(jnp.asarray, params), as_series(data)
        chain, _ = self.chain(params, series)
        found = self._smoothed(params, series)
        last = series.valid.sum(1) - 1
        at = lambda x: jax.vmap(lambda row, i: row[i])(x, last)  # noqa: E731
        to_come = future_inputs(inputs, (len(last), n_steps, series.inputs.shape[-1]), series.y.dtype)
        shift = jnp.zeros((len(last), n_steps, self.n_states), series.y.dtype)
        if "transition_input" in params:
            shift = jnp.matmul(to_come, params["transition_input"].T, precision=PRECISION)
        ahead = partial(gaussian_chain.forecast, transition=chain.transition, shift=shift)
        mean, covariance = ahead(at(found.mean), at(found.covariance), noise=chain.noise)
        wide = None if found.wide is None else ahead(at(found.mean), at(found.wide), noise=jnp.zeros_like(chain.noise))[1]
        seen = self._observed(params, mean, covariance, wide, to_come)
        noise = _matrix(params["observation_noise"])
        states = GaussianPath(*kalman.at_limit(mean, covariance, wide))
        return squeeze(StateForecast(states, GaussianPath(seen.mean, seen.covariance + noise)), data)

    @one_program
    def sample(self, key: Array, params: Params, n: int, n_steps: int = 100, inputs: Any = None) -> Sequences:
        """Draw n series of `n_steps` steps; with `inputs` (n, T, P) or (T, P) a dict of `y` and `inputs`.

        Raises:
            NotImplementedError: for a diffuse first state, which cannot be drawn, or inputs that are needed and not given.
        """
        check_positive_int(n_steps, "n_steps")
        if self.initial == "diffuse":
            raise NotImplementedError("a diffuse first state cannot be drawn")
        if inputs is None and "transition_input" in params:
            raise NotImplementedError("there are no inputs but those of data: give inputs, or use sample_like")
        params = jax.tree.map(jnp.asarray, params)
        inputs = jnp.zeros((n, n_steps, 0)) if inputs is None else jnp.broadcast_to(inputs, (n, *jnp.shape(inputs)[-2:]))
        return self._drawn(key, params, inputs, params["initial_mean"], params["initial_covariance"])

    def _drawn(self, key: Array, params: Params, inputs: Array, mean: Array, covariance: Array) -> Sequences:
        """Series along `inputs` (n, T, P), their first states from Normal(mean, covariance)."""
        first, second = jax.random.split(key)
        dtype = params["transition"].dtype
        inputs = jnp.asarray(inputs, dtype)
        n, n_steps = inputs.shape[:2]
        shift = jnp.zeros((n, n_steps, self.n_states), dtype)
        if "transition_input" in params:
            shift = jnp.matmul(inputs, params["transition_input"].T, precision=PRECISION)
        noise = _matrix(params["state_noise"])
        states = gaussian_chain.sample(first, mean, covariance, params["transition"], shift, noise)
        seen = self._observed(params, states, jnp.zeros((self.n_states, self.n_states), dtype), None, inputs).mean
        root = semi_cholesky(_matrix(params["observation_noise"]))
        y = seen + jnp.matmul(jax.random.normal(second, seen.shape, dtype), root.T, precision=PRECISION)
        return Sequences({"y": y, "inputs": inputs} if inputs.shape[-1] else y, jnp.full((n,), n_steps, jnp.int32))

    def sample_like(self, key: Array, params: Params, data: PyTree) -> Sequences:
        """Series of the lengths, inputs and missing entries of those in `data`.

        A diffuse state starts where the smoother has it: the likelihood does not depend on where that is.
        """
        params, series, length = jax.tree.map(jnp.asarray, params), as_series(data), jnp.asarray(as_sequences(data).length)
        if self.initial == "diffuse":
            mean = kalman.smooth(self.chain(params, series)[0]).mean[:, 0]
            first = mean, jnp.zeros((self.n_states, self.n_states), mean.dtype)
        else:
            first = params["initial_mean"], params["initial_covariance"]
        drawn = self._drawn(key, params, series.inputs, *first).x
        y = jnp.where(series.seen, drawn["y"] if isinstance(drawn, dict) else drawn, jnp.nan)
        return Sequences({**drawn, "y": y} if isinstance(drawn, dict) else y, length)


def _matrix(noise: Array) -> Array:
    return jnp.diag(noise) if noise.ndim == 1 else noise
