"""Autoregression about a mean that switches: the current value depends on the regimes of its lags too (Hamilton 1989)."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem import constraints as sets
from jaxem.data.sequences import Sequences, as_sequences, lagged, step_weight, with_gaps, with_observed
from jaxem.data.validation import check_finite, check_positive_int, floating, numeric
from jaxem.families.regression import AutoRegression, LinearRegression
from jaxem.init import KMeansPlusPlus
from jaxem.latents import chain
from jaxem.model import Model, one_program
from jaxem.models.chains.inference import Chain, ChainInference, Forecast, forecast, squeeze
from jaxem.models.chains.transition import Transition
from jaxem.models.mixture import Mixture
from jaxem.numerics.affine import Affine, standardization
from jaxem.numerics.floors import NEAR, known_floor
from jaxem.numerics.logs import safe_log
from jaxem.pytree import PyTree, static, struct
from jaxem.types import Params, Rows


@struct
class MarkovAutoregression(ChainInference, Model):
    """x_t - mean[z_t] = sum over lags of coefficients[l] (x_{t-l} - mean[z_{t-l}]) + Normal(0, variance[z_t]) noise.

    The regimes of a step and of its P lags together are one state of a chain of K^(P+1) states, which starts in its
    stationary distribution; the first P steps are taken as given. The M-step has no closed form: Optax.

    Parameters: `transition` (K, K) with rows the regime before, `mean` (K,), `coefficients` (P,), `variance` () or (K,).
    Data: `jaxem.sequences([...])` of series (T,), or one series. Posteriors and paths are of the current regime, for
    the T - P steps from step P on.

    Attributes:
        n_regimes: K.
        order: number of lags, P.
        switching_variance: whether each regime has a variance of its own.
        regression: of a step on its lags; its `floor` is that of the variances.
    """

    n_regimes: int = static(default=2)
    order: int = static(default=4)
    switching_variance: bool = static(default=False)
    regression: LinearRegression = LinearRegression(switching_coefficients=False)

    exchangeable: ClassVar[str] = "n_regimes"
    constraints: ClassVar[dict[str, Any]] = {
        "transition": sets.Simplex(), "mean": sets.Real(), "coefficients": sets.Real(), "variance": sets.Positive(),
    }  # fmt: skip

    @property
    def regimes(self) -> np.ndarray:
        """(K^(P+1), P+1) regimes of a step, its first lag, its second, ... in every joint state."""
        return np.array(list(itertools.product(range(self.n_regimes), repeat=self.order + 1)))

    def lines(self, params: Params) -> Params:
        """Parameters of the regression in every joint state."""
        mean, lag = params["mean"][self.regimes], params["coefficients"]
        now = self.regimes[:, 0]
        # Below the floor the density stays as it is there: an ascent gains nothing by going on.
        least = jnp.maximum(params["variance"], known_floor(self.regression.floor))
        variance = least[now] if self.switching_variance else jnp.broadcast_to(least, now.shape)
        return {"intercept": mean[:, 0] - mean[:, 1:] @ lag, "coefficients": lag, "variance": variance}

    def at_floor(self, params: Params) -> dict[str, Array]:
        near = params["variance"] <= NEAR * known_floor(self.regression.floor)
        return {**super().at_floor(params), "variance": near}

    def floored(self, data: PyTree, weight: Array | None) -> MarkovAutoregression:
        data = lagged(as_sequences(data, single=False), self.order)
        return dataclasses.replace(self, regression=self.regression.floored(data.steps(), step_weight(data, weight)))

    def centered(self, params: Params) -> MarkovAutoregression:
        return dataclasses.replace(self, regression=self.regression.centered(self.lines(params)))

    def recentered(self, stats: PyTree, params: Params) -> PyTree:
        return {**stats, "regression": self.regression.recentered(stats["regression"], self.lines(params))}

    def natural(self, params: Params) -> dict[str, Any]:
        """Leaves `log_stationary` (K,), `log_transition` (K, K) and `regression`, that of the joint states."""
        return {
            "log_stationary": safe_log(jnp.maximum(chain.stationary(params["transition"]), 0)),
            "log_transition": safe_log(params["transition"]),
            "regression": self.regression.natural(self.lines(params)),
        }

    def pack(self, natural: PyTree) -> PyTree:
        return {**natural, "regression": self.regression.pack(natural["regression"])}

    def joint_chain(self, natural: PyTree, data: PyTree) -> Chain:
        """The chain of joint states."""
        data = lagged(as_sequences(data, single=False), self.order)
        scores = self.regression.scores(natural["regression"], data.steps()).reshape(len(self.regimes), *data.shape)
        if data.observed is not None:
            scores = jnp.where(data.observed, scores, 0)
        regimes, move = self.regimes, natural["log_transition"]
        initial = natural["log_stationary"][regimes[:, -1]]
        initial = initial + sum(move[regimes[:, lag + 1], regimes[:, lag]] for lag in range(self.order))
        follows = (regimes[:, None, :-1] == regimes[None, :, 1:]).all(-1)
        transition = jnp.where(follows, move[regimes[:, 0][:, None], regimes[:, 0]], -jnp.inf)
        return Chain(initial, transition, scores, jnp.asarray(data.valid()))

    def log_marginal(self, natural: PyTree, data: PyTree, rows: Rows) -> Array:
        return chain.log_partition(*self.joint_chain(natural, data).astuple(), hard=rows.hard)

    def spurious(self, stats: PyTree, params: Params) -> Array:
        """As of lines, by the steps of each regime."""
        count = jax.ops.segment_sum(stats["regression"]["log_scale"], self.regimes[:, 0], self.n_regimes)
        return self.regression.spurious({"log_scale": count}, params)

    # --- the boundary of fit -----------------------------------------------------------------
    def validate(self, data: Any) -> Sequences:
        """Series longer than `order`.

        Raises:
            ValueError: for steps that are not single numbers, or series too short.
        """
        check_positive_int(self.n_regimes, "n_regimes", 2)
        check_positive_int(self.order, "order")
        data = as_sequences(data)
        data = with_observed(Sequences(numeric(data.x, "data"), numeric(data.length, "data length"), data.observed))
        lagged(data, self.order)
        valid = np.asarray(data.valid())
        check_finite(data.x[valid], "data")
        return Sequences(floating(np.where(valid, data.x, data.x[:, :1]), "data"), data.length, data.observed)

    def coordinates(self, data: PyTree, xp: Any, present: Any = None) -> Affine:
        """Centred and scaled steps."""
        data = as_sequences(data, single=False)
        seen = data.seen() if present is None else data.seen() & present[:, None]
        return standardization(xp.where(seen, data.x, xp.nan).reshape(-1, 1), "scalar", xp)

    def log_abs_det(self, data: PyTree, affine: Affine) -> Any:
        windows = lagged(as_sequences(data, single=False), self.order)
        return windows.seen().sum(1) * affine.log_abs_det()

    def rescaled(self, affine: Affine) -> MarkovAutoregression:
        floor = self.regression.floor
        floor = floor if floor is None else affine.covariances(floor)
        return dataclasses.replace(self, regression=dataclasses.replace(self.regression, floor=floor))

    def rescale_params(self, params: Params, affine: Affine) -> Params:
        return {**params, "mean": affine.means(params["mean"]), "variance": affine.covariances(params["variance"])}

    def template(self, data: PyTree) -> Params:
        """Valid parameters that know nothing."""
        k, dtype = self.n_regimes, as_sequences(data).x.dtype
        return {
            "transition": jnp.full((k, k), 1 / k, dtype),
            "mean": jnp.zeros((k,), dtype),
            "coefficients": jnp.zeros((self.order,), dtype),
            "variance": jnp.ones((k,) if self.switching_variance else (), dtype),
        }

    def initialize(self, key: Array | None, data: PyTree, weight: Array) -> Params:
        """Means and variances of a mixture of all steps, no autoregression; transitions towards staying by chance."""
        data = as_sequences(data, single=False)
        which, how = jax.random.split(key)  # type: ignore[arg-type]
        family = LinearRegression(switching_variance=self.switching_variance)
        steps = data.steps()
        rows = {"y": steps, "inputs": jnp.zeros((len(steps), 0), steps.dtype)}
        step_weight = (weight[:, None] * data.seen()).reshape(-1)
        mixture = Mixture(self.n_regimes, family).initialize_by(KMeansPlusPlus(), which, rows, step_weight)
        template = self.template(data)
        found = mixture["components"]
        start = {"transition": Transition().start(how, template["transition"]), "mean": found["intercept"]}
        return {**template, **start, "variance": found["variance"]}

    # --- after the fit -----------------------------------------------------------------------
    def chain(self, params: Params, data: PyTree) -> Chain:
        """The chain of joint states."""
        model = self.centered(params)
        return model.joint_chain(model.pack(model.natural(params)), with_gaps(data))

    def _current(self, joint: Array) -> Array:
        return joint.reshape(*joint.shape[:-1], self.n_regimes, self.n_regimes**self.order).sum(-1)

    @one_program
    def log_prob(self, params: Params, data: PyTree) -> Array:
        """(B,) log-likelihood of each series given its first P steps."""
        return chain.log_partition(*self.chain(params, data).astuple())

    @one_program
    def posterior(self, params: Params, data: PyTree) -> Array:
        """(B, T - P, K) smoothed probabilities of the regimes."""
        return self._current(super().posterior(params, data))

    @one_program
    def filter(self, params: Params, data: PyTree) -> Array:
        """(B, T - P, K) causal probabilities of the regimes."""
        return self._current(super().filter(params, data))

    @one_program
    def pairwise(self, params: Params, data: PyTree) -> Array:
        """(B, T - P - 1, K, K) probabilities of two regimes in a row."""
        joint = super().pairwise(params, data)
        rest = self.n_regimes**self.order
        return joint.reshape(*joint.shape[:-2], self.n_regimes, rest, self.n_regimes, rest).sum((-3, -1))

    @one_program
    def viterbi(self, params: Params, data: PyTree) -> Array:
        """(B, T - P) regimes of the most probable path."""
        return super().viterbi(params, data) // self.n_regimes**self.order

    def sample_posterior(self, key: Array, params: Params, data: PyTree, n_samples: int = 1) -> Array:
        """(n_samples, B, T - P) regimes drawn from p(z | x)."""
        return super().sample_posterior(key, params, data, n_samples) // self.n_regimes**self.order

    def n_free_params(self, data: PyTree) -> int:
        k = self.n_regimes
        return k * (k - 1) + k + self.order + (k if self.switching_variance else 1)

    def forecast(self, key: Array, params: Params, data: PyTree, n_steps: int, n_samples: int = 1000) -> Forecast:
        """What comes after each series: exact probabilities of the regimes, and sampled values for their uncertainty.

        Missing steps among the last P are drawn too, given all that is seen.

        Args:
            key: random key.
            params: parameters.
            data: series up to now.
            n_steps: H, how far ahead.
            n_samples: S, paths drawn.
        """
        params, past = jax.tree.map(jnp.asarray, params), with_gaps(data)
        ahead = forecast(key, self.chain(params, past), self._lags, self.lines(params), past, (n_samples, n_steps))
        return Forecast(squeeze(self._current(ahead.states), data), squeeze(ahead.samples, data, 1))

    @property
    def _lags(self) -> AutoRegression:
        """The autoregression whose states are the joint ones."""
        return AutoRegression(order=self.order, switching_coefficients=False)

    def _drawn(self, key: Array, params: Params, shape: tuple[int, int], given: Array | None = None) -> Array:
        """(n, T) series that start with `given` (n, P); None: standard normal."""
        params, (path, what) = jax.tree.map(jnp.asarray, params), jax.random.split(key)
        initial = safe_log(jnp.maximum(chain.stationary(params["transition"]), 0))
        regimes = chain.sample(path, initial, safe_log(params["transition"]), *shape)
        n_steps, place = shape[1] - self.order, (self.n_regimes ** np.arange(self.order + 1)).astype(np.int32)
        states = jnp.stack([regimes[:, i : i + n_steps] for i in range(self.order + 1)], -1) @ place
        return self._lags.sample_path(what, self.lines(params), states, given)

    @one_program
    def sample(self, key: Array, params: Params, n: int, n_steps: int = 100) -> Sequences:
        """n series of `n_steps` steps, of which the first P, which the model takes as given, are standard normal."""
        check_positive_int(n_steps, "n_steps", self.order)
        return Sequences(self._drawn(key, params, (n, n_steps)), jnp.full((n,), n_steps, jnp.int32))

    def sample_like(self, key: Array, params: Params, data: PyTree) -> Sequences:
        """Series like those in `data`: their lengths, missing steps and first P steps; NaN in the padding."""
        data = with_gaps(data)
        x = self._drawn(key, params, data.shape, jnp.asarray(data.filled())[:, : self.order])
        return Sequences(x, jnp.asarray(data.length), data.observed).blanked(jnp.nan)
