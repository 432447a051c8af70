"""Linear regression on inputs, with coefficients and variance of each component or shared by all; and on a series' past.

Statistics are those of residuals about each component's current coefficients (`centered`), so that a good fit does not
cancel in the M-step.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem import constraints as sets
from jaxem.data.sequences import Sequences, lagged
from jaxem.data.validation import check_finite, floating, numeric
from jaxem.families.base import THIN, Family, by_chance
from jaxem.numerics.affine import LinearUnits, linear_units
from jaxem.numerics.floors import known_floor, least_variance
from jaxem.numerics.linalg import PRECISION, least_squares, semi_cholesky
from jaxem.numerics.logs import divided
from jaxem.pytree import PyTree, static, struct
from jaxem.types import Params


@struct
class LinearRegression(Family):
    """y ~ Normal(inputs . coefficients, variance) given the component.

    Data: a dict of `y` (N,) and `inputs` (N, P). Parameters: `intercept` and `variance`, (K,) or () where shared, and
    `coefficients`, (K, P) or (P,) where shared.

    Attributes:
        switching_intercept: whether each component has its own intercept.
        switching_coefficients: whether each component has its own coefficients.
        switching_variance: whether each component has its own variance.
        floor: least variance, in the squared units of y; a component at it makes a restart DEGENERATE. None: 1e-8 times
            the variance of y.
    """

    switching_intercept: bool = static((True, False), default=True)
    switching_coefficients: bool = static((True, False), default=True)
    switching_variance: bool = static((True, False), default=True)
    floor: float | Array | None = None
    origin: Any = None

    @property
    def constraints(self) -> dict[str, Any]:
        return {"intercept": sets.Real(), "coefficients": sets.Real(), "variance": sets.Positive()}

    @property
    def m_step_is_maximum(self) -> bool:
        """Shared coefficients weigh components by their variances: one is maximised given the other (ECM)."""
        shared = not (self.switching_intercept and self.switching_coefficients)
        return not (shared and self.switching_variance)

    def lines(self, params: Params, k: int) -> Array:
        """(K, P + 1) coefficients of each component, the intercept last."""
        intercept = jnp.broadcast_to(params["intercept"], (k,))
        coefficients = params["coefficients"]
        return jnp.concatenate([jnp.broadcast_to(coefficients, (k, coefficients.shape[-1])), intercept[:, None]], -1)

    def _k(self, params: Params) -> int:
        sizes = [params["intercept"].shape, params["variance"].shape, params["coefficients"].shape[:-1]]
        return max((s[0] for s in sizes if s), default=1)

    def centered(self, params: Params) -> LinearRegression:
        return dataclasses.replace(self, origin=self.lines(params, self._k(params)))

    def recentered(self, stats: PyTree, params: Params) -> PyTree:
        """Moments of r' = r - shift . z from those of r."""
        cross, shift = stats["cross"], self.centered(params).origin - self.origin
        pull = jnp.einsum("kpq,kq->kp", stats["gram"], shift, precision=PRECISION)
        square = stats["square"] - (shift * (2 * cross - pull)).sum(-1)
        return {**stats, "square": square, "cross": cross - pull}

    def natural(self, params: Params) -> dict[str, Array]:
        """Leaves `log_scale` (t = 1), `square` (t = r^2), `cross` (t = r z) and `gram` (t = z z^T).

        z (P + 1,) are the inputs and one, r = y - origin . z.
        """
        k = self._k(params)
        lines = self.lines(params, k)
        lines = lines if self.origin is None else lines - self.origin
        variance = jnp.broadcast_to(params["variance"], (k,))
        return {
            "log_scale": -(jnp.log(variance) + math.log(2 * math.pi)) / 2,
            "square": -1 / (2 * variance),
            "cross": lines / variance[:, None],
            "gram": -lines[:, :, None] * lines[:, None] / (2 * variance)[:, None, None],
        }

    def pack(self, natural: PyTree) -> PyTree:
        origin = jnp.zeros_like(natural["cross"]) if self.origin is None else self.origin
        return {**natural, "origin": jax.lax.stop_gradient(origin)}

    def scores(self, natural: PyTree, data: PyTree) -> Array:
        z = jnp.concatenate([data["inputs"].T, jnp.ones_like(data["y"])[None]])
        r = data["y"] - jnp.matmul(natural["origin"], z, precision=PRECISION)
        rows, cols = np.triu_indices(z.shape[0])
        gram = natural["gram"] + jnp.swapaxes(natural["gram"], 1, 2)
        halved = np.where(rows == cols, 0.5, 1).astype(gram.dtype)
        quadratic = jnp.matmul(gram[:, rows, cols] * halved, z[rows] * z[cols], precision=PRECISION)
        linear = r * jnp.matmul(natural["cross"], z, precision=PRECISION)
        return natural["log_scale"][:, None] + natural["square"][:, None] * r * r + linear + quadratic

    def _design(self, k: int, width: int) -> np.ndarray:
        """(K, P + 1, M) how the M estimated numbers make up the lines of all components."""
        own, shared = np.eye(k), np.ones((k, 1))
        spread = {True: own, False: shared}
        slopes = np.kron(spread[self.switching_coefficients][:, None], np.eye(width)[:, :-1]).reshape(k, width, -1)
        level = np.kron(spread[self.switching_intercept][:, None], np.eye(width)[:, -1:]).reshape(k, width, -1)
        return np.concatenate([slopes, level], -1)

    def m_step(self, stats: PyTree, params: Params) -> Params:
        """Weighted least squares; a component without data keeps its parameters."""
        count, cross, square = stats["log_scale"], stats["cross"], stats["square"]
        gram = (stats["gram"] + jnp.swapaxes(stats["gram"], 1, 2)) / 2
        k, width = cross.shape
        before = self.lines(params, k)
        origin = jnp.zeros_like(before) if self.origin is None else self.origin
        present = count > 0
        if self.switching_intercept and self.switching_coefficients:
            change = least_squares(gram, cross)
        else:
            design = jnp.asarray(self._design(k, width), cross.dtype)
            precision = 1 / jnp.broadcast_to(params["variance"], (k,))
            # Lines that differ from a shared one only by their origin: solve for what is estimated itself.
            wanted = cross + jnp.einsum("kpq,kq->kp", gram, origin, precision=PRECISION)
            system = jnp.einsum("kpm,k,kpq,kqn->mn", design, precision, gram, design, precision=PRECISION)
            right = jnp.einsum("kpm,k,kp->m", design, precision, wanted, precision=PRECISION)
            found = least_squares(system, right)
            change = jnp.einsum("kpm,m->kp", design, found, precision=PRECISION) - origin
        explained = 2 * (change * cross).sum(-1) - jnp.einsum("kp,kpq,kq->k", change, gram, change, precision=PRECISION)
        left = jnp.maximum(square - explained, 0)
        if self.switching_variance:
            variance = jnp.where(present, divided(left, count), params["variance"])
        else:
            variance = jnp.where(count.sum() > 0, divided(left.sum(), count.sum()), params["variance"])
        lines = jnp.where(present[:, None], origin + change, before)
        shared = jnp.argmax(count)  # a component with data holds what all share
        return {
            "intercept": lines[:, -1] if self.switching_intercept else lines[shared, -1],
            "coefficients": lines[:, :-1] if self.switching_coefficients else lines[shared, :-1],
            "variance": jnp.maximum(variance, known_floor(self.floor) + jnp.finfo(variance.dtype).tiny),
        }

    def template(self, data: PyTree, n_components: int) -> Params:
        dtype, width = data["y"].dtype, data["inputs"].shape[-1]
        lead = lambda own: (n_components,) if own else ()  # noqa: E731
        return {
            "intercept": jnp.zeros(lead(self.switching_intercept), dtype),
            "coefficients": jnp.zeros((*lead(self.switching_coefficients), width), dtype),
            "variance": jnp.ones(lead(self.switching_variance), dtype),
        }

    def at_floor(self, params: Params) -> dict[str, Array]:
        return {**super().at_floor(params), "variance": params["variance"] <= known_floor(self.floor)}

    def floored(self, data: PyTree, weight: Array | None) -> LinearRegression:
        return self if self.floor is not None else dataclasses.replace(self, floor=least_variance(data["y"], weight))

    def coordinates(self, data: PyTree, xp: Any, present: Any = None) -> LinearUnits:
        """Centred and scaled inputs and responses: what an intercept that all share can take up."""
        return self._held(linear_units(data["y"], data["inputs"], xp, present))

    def _held(self, units: LinearUnits) -> LinearUnits:
        """Without a shift of inputs, where each line would need an intercept of its own to undo it."""
        if self.switching_intercept or not self.switching_coefficients:
            return units
        own = np.arange(len(units.shift)) == len(units.shift) - 1
        return dataclasses.replace(units, shift=units.shift * own)

    def rescaled(self, affine: LinearUnits) -> LinearRegression:
        return self if self.floor is None else dataclasses.replace(self, floor=affine.response.covariances(self.floor))

    def rescale_params(self, params: Params, affine: LinearUnits) -> Params:
        coefficients, intercept = params["coefficients"], params["intercept"]
        shared = self.switching_coefficients and not self.switching_intercept
        return {
            "intercept": affine.response.rows(intercept) if shared else affine.level(intercept, coefficients),
            "coefficients": affine.slopes(coefficients),
            "variance": affine.response.covariances(params["variance"]),
        }

    def spurious(self, stats: PyTree, params: Params) -> Array:
        """Whether a line goes through too few rows, or through not many and much closer than the others."""
        count, variance = stats["log_scale"], params["variance"]
        pooled = jnp.sum(count * variance) / count.sum()
        width = params["coefficients"].shape[-1]
        needed = width * self.switching_coefficients + self.switching_intercept + 1
        return by_chance(count, variance < THIN * pooled, needed)

    def validate(self, data: Any) -> Any:
        """A dict of `y` (N,) and `inputs` (N, P).

        Raises:
            ValueError: for other keys, shapes, or lengths that differ.
        """
        if not isinstance(data, dict) or set(data) != {"y", "inputs"}:
            got = f"keys {sorted(data)}" if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"data must be a dict of 'y' (N,) and 'inputs' (N, P); got {got}")
        y, inputs = numeric(data["y"], "data y"), numeric(data["inputs"], "data inputs")
        if y.ndim != 1 or inputs.ndim != 2 or len(y) != len(inputs):
            wanted = "y (N,) and inputs (N, P) of one length"
            raise ValueError(f"data must hold {wanted}; got shapes {y.shape} and {inputs.shape}")
        check_finite(y, "data y")
        if inputs.size:
            check_finite(inputs, "data inputs")
        return {"y": floating(y, "data y"), "inputs": floating(inputs, "data inputs", data["inputs"])}

    def features(self, data: PyTree) -> Array:
        return super().features(jnp.concatenate([data["y"][:, None], data["inputs"]], 1))

    def n_free_params(self, n_components: int, data: PyTree) -> int:
        return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(self.template(data, n_components)))

    def sample(self, key: Array, params: Params, component: Array) -> dict[str, Array]:
        """`y` given `inputs` drawn from a standard normal distribution: the model says nothing of inputs."""
        width = params["coefficients"].shape[-1]
        which, what = jax.random.split(key)
        inputs = jax.random.normal(which, (*component.shape, width), params["coefficients"].dtype)
        return {"y": self.respond(what, params, component, inputs), "inputs": inputs}

    def sample_like(self, key: Array, params: Params, component: Array, data: PyTree) -> dict[str, Array]:
        """`y` given the `inputs` of data."""
        return {"y": self.respond(key, params, component, data["inputs"]), "inputs": data["inputs"]}

    def respond(self, key: Array, params: Params, component: Array, inputs: Array) -> Array:
        """(n,) responses to inputs (n, P)."""
        k = self._k(params)
        line = self.lines(params, k)[component]
        scale = jnp.sqrt(jnp.broadcast_to(params["variance"], (k,)))[component]
        noise = jax.random.normal(key, component.shape, line.dtype)
        return (line[..., :-1] * inputs).sum(-1) + line[..., -1] + scale * noise


@struct
class AutoRegression(LinearRegression):
    """x_t ~ Normal(intercept + sum over lags of coefficients[l] x_{t - l}, variance) given the state: for chains.

    Data: sequences of single numbers (T,). The first P steps of each are taken as given, so that states begin at
    step P (Hamilton 1994, section 22.4). Steps whose past is not all seen count as missing; forecasts draw what is missing.

    Attributes:
        order: number of lags, P.
    """

    order: int = static(default=1)

    @property
    def n_given(self) -> int:  # type: ignore[override]
        """The first steps, which are conditioned on."""
        return self.order

    def windows(self, data: Sequences) -> Sequences:
        return data if isinstance(data.x, dict) else lagged(data, self.order)

    def validate(self, data: Any) -> Any:
        if isinstance(data, dict):
            return super().validate(data)
        array = numeric(data, "data")
        if array.ndim != 1:
            raise ValueError(f"data of an AutoRegression must be sequences of single numbers (T,); got steps {array.shape[1:]}")
        check_finite(array, "data")
        return floating(array, "data")

    def coordinates(self, data: PyTree, xp: Any, present: Any = None) -> LinearUnits:
        """Centred and scaled steps: one change for the present and the past."""
        y = data["y"] if isinstance(data, dict) else data
        units = linear_units(y, xp.broadcast_to(y[:, None], (len(y), self.order)), xp, present)
        return self._held(units)

    def _held(self, units: LinearUnits) -> LinearUnits:
        held = super()._held(units)
        return held if held is units else dataclasses.replace(units, shift=0 * units.shift)

    def series(self, data: Sequences) -> Sequences:
        """Series whose windows are `data`, where those are what was given."""
        if not isinstance(data.x, dict):
            return data
        x = jnp.concatenate([data.x["inputs"][:, 0, ::-1], data.x["y"]], 1)
        observed = data.observed
        if observed is not None:
            observed = jnp.concatenate([jnp.repeat(observed[:, :1], self.order, 1), observed], 1)
        return Sequences(x, data.length + self.order, observed)

    def last_given(self, key: Array, params: Params, data: Sequences, states: Array | None) -> Array:
        x = jnp.asarray(data.filled(), params["coefficients"].dtype)
        if states is None:
            last = jnp.asarray(data.length)[:, None] - self.order + jnp.arange(self.order)
            return jnp.take_along_axis(x, last, 1)
        mean, covariance = self._belief(params, x, jnp.asarray(data.seen()), jnp.asarray(data.valid()), states)
        noise = jax.random.normal(key, mean.shape, mean.dtype)
        return (mean + jnp.matmul(semi_cholesky(covariance), noise[..., None], precision=PRECISION)[..., 0])[:, ::-1]

    def _belief(self, params: Params, x: Array, seen: Array, valid: Array, states: Array) -> tuple[Array, Array]:
        """Mean (n, P) and covariance (n, P, P) of the last steps of each series, the last first, given all that is seen.

        A Kalman filter of P lags. What is missing among the first P steps has the mean and variance of those of its series.
        """
        p, count = self.order, seen.sum(1, keepdims=True)
        center = divided(jnp.where(seen, x, 0).sum(1, keepdims=True), count)
        spread = divided(jnp.where(seen, jnp.square(x - center), 0).sum(1, keepdims=True), count)
        lines, k = self.lines(params, self._k(params)), self._k(params)
        variances = jnp.broadcast_to(params["variance"], (k,))
        mean = jnp.where(seen, x, center)[:, :p][:, ::-1]
        covariance = jnp.where(seen, 0, spread)[:, :p][:, ::-1, None] * jnp.eye(p, dtype=x.dtype)

        def step(belief: tuple[Array, Array], now: tuple[Array, Array, Array, Array]):
            mean, covariance = belief
            x, seen, valid, state = now
            line = lines[state]
            cross = jnp.einsum("npq,nq->np", covariance, line[:, :-1], precision=PRECISION)
            spread = (cross * line[:, :-1]).sum(-1) + variances[state]
            expected = (mean * line[:, :-1]).sum(-1) + line[:, -1]
            new = jnp.concatenate([expected[:, None], mean[:, :-1]], 1)
            along = jnp.concatenate([spread[:, None], cross[:, :-1]], 1)
            wide = jnp.concatenate([cross[:, :-1, None], covariance[:, :-1, :-1]], 2)
            wide = jnp.concatenate([along[:, None], wide], 1)
            gain = jnp.where(seen, 1 / spread, 0)[:, None] * along
            new = new + gain * (x - expected)[:, None]
            wide = wide - gain[:, :, None] * along[:, None]
            return (jnp.where(valid[:, None], new, mean), jnp.where(valid[:, None, None], wide, covariance)), None

        rest = x[:, p:].T, seen[:, p:].T, valid[:, p:].T, states.T
        return jax.lax.scan(step, (mean, covariance), rest)[0]

    def sample_path(self, key: Array, params: Params, states: Array, given: Array | None = None, like: Any = None) -> Array:
        del like
        dtype, (first, rest) = params["coefficients"].dtype, jax.random.split(key)
        if given is None:
            given = jax.random.normal(first, (states.shape[0], self.order), dtype)
        given = given.astype(dtype)

        def step(before: Array, now: tuple[Array, Array]):
            key, state = now
            x = self.respond(key, params, state, before)
            return jnp.concatenate([x[:, None], before[:, :-1]], 1), x

        x = jax.lax.scan(step, given[:, ::-1], (jax.random.split(rest, states.shape[1]), states.T))[1].T
        return jnp.concatenate([given, x], 1)
