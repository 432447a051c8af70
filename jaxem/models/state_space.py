"""Linear-Gaussian state space models (Kalman 1960; EM by Shumway and Stoffer 1982)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem import constraints as sets
from jaxem.latents import gaussian_chain
from jaxem.latents.gaussian_chain import GaussianChain, Smoothed
from jaxem.linalg import cholesky, eye_like, inverse_lower
from jaxem.models.linear_gaussian import NOISES, LinearGaussian, System
from jaxem.models.series import Series, as_series, validated
from jaxem.models.state_inference import StateInference
from jaxem.models.state_start import start
from jaxem.numerics import PRECISION
from jaxem.sequences import Sequences
from jaxem.types import Model, Params, Rows, static, struct
from jaxem.validation import check_positive_int, is_traced

PyTree = Any

#: The linear systems that make up the model: the leaves of their matrix, side by side, and of their noise.
SYSTEMS = {
    "initial": (("initial_mean",), "initial_covariance"),
    "state": (("transition", "transition_input"), "state_noise"),
    "observation": (("observation", "observation_input"), "observation_noise"),
}
INITIAL = ("free", "diffuse")


@struct
class StateSpace(StateInference, Model):
    """States x_t of K numbers that evolve linearly, seen through observations y_t of D numbers with noise.

        x_1 = Normal(initial_mean, initial_covariance)
        x_t = transition x_{t-1} + transition_input u_t + Normal(0, state_noise)
        y_t = observation x_t + observation_input u_t + Normal(0, observation_noise)

    The E-step is a smoother, the M-step least squares (Shumway and Stoffer 1982); with known entries those of Holmes
    (2013). An intercept is an input of ones. A model with nothing fixed is not identified: K^2 of its parameters only
    choose the coordinates of the state.

    Parameters: `initial_mean` (K,), `initial_covariance` (K, K) (neither if diffuse), `transition` (K, K), `state_noise`
    (K, K) or (K,), `observation` (D, K), `observation_noise` (D, D) or (D,); with inputs `transition_input` (K, P) and
    `observation_input` (D, P).
    Data: `jaxem.sequences([y1, y2, ...])`, (T,) or (T, D) each, or one series as an array; with inputs a dict of `y` and
    `inputs` (T,) or (T, P) instead of y. NaN in y is missing, a single entry or a whole step.

    Attributes:
        n_states: K.
        fixed: what is known: a dict from parameters' names to arrays of their shapes, NaN where an entry is free. A
            number stands for all entries, or for that multiple of the identity of a (K, K) or (D, D) noise. Noise that is
            not diagonal is free or fixed block by block; a variance of zero is exact.
        state_noise: "full" or "diag".
        observation_noise: "full" or "diag".
        initial: "free", or "diffuse": nothing is known of the first state, the likelihood is the exact diffuse one (Durbin
            and Koopman 2012, section 7.2.2).
        floor: least variance, or eigenvalue, of free noise.
    """

    n_states: int = static()
    fixed: Any = None
    state_noise: str = static(default="full")
    observation_noise: str = static(default="diag")
    initial: str = static(default="free")
    floor: float | Array = 0.0
    origin: Any = None

    missing: ClassVar[str] = "marginal"
    needs_key: ClassVar[bool] = False

    # --- the three linear systems ------------------------------------------------------------
    def _names(self) -> list[str]:
        return [name for name in SYSTEMS if name != "initial" or self.initial != "diffuse"]

    def _noise_kind(self, name: str) -> str:
        return {"state": self.state_noise, "observation": self.observation_noise}.get(name, "full")

    def _known(self, leaf: str, shape: tuple[int, ...], square: bool = False) -> Any:
        """Known entries of a parameter, NaN where free; None: all free."""
        value = None if self.fixed is None else self.fixed.get(leaf)
        if value is None or np.ndim(value):
            return value
        return value * (np.eye(*shape) if square else np.ones(shape))

    def systems(self, like: Params) -> dict[str, LinearGaussian]:
        """The linear systems, for parameters of the shapes of `like`."""
        out = {}
        for name in self._names():
            leaves, noise = SYSTEMS[name]
            shapes = [(*np.shape(like[leaf]), 1)[:2] for leaf in leaves if leaf in like]
            fixed = [self._known(leaf, shape) for leaf, shape in zip(leaves, shapes)]
            if all(part is None for part in fixed):
                whole = None
            else:
                xp: Any = np if not is_traced(self.fixed) else jnp
                parts = [np.full(s, np.nan) if part is None else part for part, s in zip(fixed, shapes)]
                whole = xp.concatenate([xp.reshape(part, (len(part), -1)) for part in parts], 1)
            shape = np.shape(like[noise])
            known = self._known(noise, shape, len(shape) == 2)
            floor = 0.0 if name == "initial" else self.floor
            origin = None if self.origin is None else self.origin[name]
            out[name] = LinearGaussian(self._noise_kind(name), whole, known, floor, origin)
        return out

    def matrices(self, params: Params) -> dict[str, Array]:
        """The matrix of each system, the inputs' columns last."""
        whole = lambda leaves: [params[leaf] for leaf in leaves if leaf in params]  # noqa: E731
        parts = {name: whole(SYSTEMS[name][0]) for name in self._names()}
        return {name: jnp.concatenate([x.reshape(len(x), -1) for x in part], 1) for name, part in parts.items()}

    def at(self, params: Params) -> StateSpace:
        return dataclasses.replace(self, origin=self.matrices(params))

    @property
    def constraints(self) -> dict[str, Any]:
        """What lies in no plain set, and the known entries."""
        noise = {"full": sets.SPD(), "diag": sets.Positive()}
        out: dict[str, Any] = {SYSTEMS[name][1]: noise[self._noise_kind(name)] for name in self._names()}
        for leaf, value in (self.fixed or {}).items():
            whole = out.get(leaf, sets.Real())
            if np.ndim(value):
                out[leaf] = sets.Partly(whole, value)
            else:
                out[leaf] = sets.Fixed()
        return out

    @property
    def m_step_is_maximum(self) -> bool:  # type: ignore[override]
        fixed = self.fixed or {}
        kinds = {"state": self.state_noise, "observation": self.observation_noise}
        return all(kind == "diag" or not set(SYSTEMS[name][0]) & set(fixed) for name, kind in kinds.items())

    # --- the density -------------------------------------------------------------------------
    def natural(self, params: Params) -> dict[str, Any]:
        """For each linear system the leaves of `LinearGaussian.natural`."""
        matrices, systems = self.matrices(params), self.systems(params)
        return {name: systems[name].natural(matrices[name], params[SYSTEMS[name][1]]) for name in systems}

    def _like(self, natural: PyTree, n_inputs: int) -> Params:
        """Parameters' shapes, of which `systems` asks."""
        k, d = self.n_states, natural["observation"]["cross"].shape[0]
        return blank(k, d, n_inputs, self.initial, self.state_noise, self.observation_noise)

    def log_marginal(self, natural: PyTree, data: PyTree, rows: Rows) -> Array:
        del rows
        series = as_series(data)
        parts = self.systems(self._like(natural, series.inputs.shape[-1]))
        found = {name: part.system(natural[name]) for name, part in parts.items()}
        chain, constant = self._chain(found, series)
        tilt, lean, more = self._tilts(found, series)
        return gaussian_chain.log_partition(dataclasses.replace(chain, tilt=tilt, lean=lean)) + constant + more

    def chain(self, params: Params, data: PyTree) -> tuple[GaussianChain, Array]:
        """The chain of states with what the data say of each, and (B,) the log-normalisers of the observations."""
        params = jax.tree.map(jnp.asarray, params)
        noises = {name: params[SYSTEMS[name][1]] for name in self._names()}
        nothing = jnp.zeros(())
        found = {name: System(matrix, noises[name], nothing, nothing) for name, matrix in self.matrices(params).items()}
        return self._chain(found, as_series(data))

    def _chain(self, found: dict[str, System], series: Series) -> tuple[GaussianChain, Array]:
        k, first, state, observation = self.n_states, found.get("initial"), found["state"], found["observation"]
        noise = jnp.diag(state.noise) if state.noise.ndim == 1 else state.noise
        white, log_scale = whitener(observation.noise, series.seen)
        mean = jnp.matmul(series.inputs, observation.matrix[:, k:].T, precision=PRECISION)
        rows, target = (
            white(jnp.broadcast_to(observation.matrix[:, :k], (*series.y.shape, k))),
            white((series.y - mean)[..., None]),
        )
        chain = GaussianChain(
            mean=None if first is None else first.matrix[:, 0],
            covariance=None if first is None else first.noise,
            transition=state.matrix[:, :k],
            shift=jnp.matmul(series.inputs, state.matrix[:, k:].T, precision=PRECISION),
            noise=noise,
            rows=rows,
            target=target[..., 0],
        )
        return chain, -log_scale

    def _tilts(self, found: dict[str, System], series: Series) -> tuple[Array, Array, Array]:
        """What a system's natural parameters add as evidence, zero in value: (n, T, K, K), (n, T, K) and (n,)."""
        k, inputs, valid = self.n_states, series.inputs, series.valid.astype(series.y.dtype)

        def of(system: System, seen: Array, inputs: Array) -> tuple[Array, Array, Array]:
            if system.tilt.ndim == 3:
                each = jnp.einsum("btd,dvw->btvw", seen, system.tilt, precision=PRECISION)
                log_tilt = jnp.matmul(seen, system.log_tilt, precision=PRECISION)
            else:
                each, log_tilt = seen[..., :1, None] * system.tilt, seen[..., 0] * system.log_tilt
            from_inputs = jnp.matmul(each[..., k:], inputs[..., None], precision=PRECISION)[..., 0]
            constant = (from_inputs[..., k:] * inputs).sum(-1) + log_tilt
            return -2 * each[..., :k, :k], 2 * from_inputs[..., :k], constant

        # The tilt of a transition is evidence on the state that it leaves.
        d = found["observation"].matrix.shape[0]
        counted = series.seen if self.observation_noise == "diag" else jnp.broadcast_to(valid[..., None], (*valid.shape, d))
        here = of(found["observation"], counted.astype(valid.dtype), inputs)
        moves = jnp.broadcast_to(valid[:, 1:, None], (len(valid), valid.shape[1] - 1, k))
        onward = (jnp.pad(x, [(0, 0), (0, 1)] + [(0, 0)] * (x.ndim - 2)) for x in of(found["state"], moves, inputs[:, 1:]))
        tilt, lean, constant = (a + b for a, b in zip(here, onward))
        more = constant.sum(1)
        if "initial" in found:
            more = more + found["initial"].tilt[0, 0] + found["initial"].log_tilt
        return tilt, lean, more

    def log_prob(self, params: Params, data: PyTree) -> Array:
        """(B,) log-likelihood, exact diffuse if the first state is."""
        chain, constant = self.chain(params, data)
        return gaussian_chain.log_partition(chain) + constant

    # --- EM ----------------------------------------------------------------------------------
    def e_step(self, params: Params, data: PyTree, weight: Array, rows: Rows) -> tuple[Array, PyTree]:
        """Moments of the smoother (Shumway and Stoffer 1982, equations 9 to 11), in the same residuals as `natural`."""
        del rows
        series = as_series(data)
        chain, constant = self.chain(params, series)
        found = gaussian_chain.smooth(chain)
        stats = self._statistics(params, chain, found, series, weight)
        loglik = jnp.where(weight > 0, weight * (found.log_mass + constant), 0).sum()
        return loglik, stats

    def _statistics(self, params: Params, chain: GaussianChain, found: Smoothed, series: Series, weight: Array) -> PyTree:
        parts, covariance = self.systems(params), found.covariance
        steps = weight[:, None] * series.valid
        z = jnp.concatenate([found.mean, series.inputs], -1)
        pad = [(0, 0)] * 3 + [(0, series.inputs.shape[-1])]
        wide = lambda x: jnp.pad(x, pad)  # noqa: E731
        spread = jnp.pad(covariance, [*pad[:2], pad[3], pad[3]])
        move = jnp.concatenate([found.mean[:, :-1], series.inputs[:, 1:]], -1)
        gain, before = found.step_gain, covariance[:, :-1]
        pulled = jnp.matmul(gain, before, precision=PRECISION)
        noise = found.step_covariance + jnp.matmul(pulled, jnp.swapaxes(gain, -1, -2), precision=PRECISION)
        weights = steps[:, 1:]
        if parts["state"].diagonal:
            weights = jnp.broadcast_to(weights[..., None], (*weights.shape, self.n_states))
        stats = {"state": parts["state"].statistics(weights, found.step_mean, move, noise, wide(-pulled), spread[:, :-1])}

        matrix = self.matrices(params)["observation"]
        residual = series.y - jnp.matmul(z, matrix.T, precision=PRECISION)
        residual = jnp.where(series.seen, residual, 0)
        of_states = matrix[:, : self.n_states]
        cross = -jnp.matmul(of_states, covariance, precision=PRECISION)
        noise = -jnp.matmul(cross, of_states.T, precision=PRECISION)
        if parts["observation"].diagonal:
            steps = steps[..., None] * series.seen
        else:  # what is missing is imputed
            share, left = imputer(params["observation_noise"], series.seen)
            residual = jnp.matmul(share, residual[..., None], precision=PRECISION)[..., 0]
            cross = jnp.matmul(share, cross, precision=PRECISION)
            noise = (
                jnp.matmul(jnp.matmul(share, noise, precision=PRECISION), jnp.swapaxes(share, -1, -2), precision=PRECISION)
                + left
            )
        stats["observation"] = parts["observation"].statistics(steps, residual, z, noise, wide(cross), spread)
        if "initial" in parts:
            first, one = found.mean[:, :1] - params["initial_mean"], jnp.ones((len(weight), 1, 1), weight.dtype)
            nothing = jnp.zeros((len(weight), 1, self.n_states, 1), weight.dtype)
            stats["initial"] = parts["initial"].statistics(
                weight[:, None], first, one, covariance[:, :1], nothing, nothing[:, :, :1]
            )
        return stats

    def m_step(self, stats: PyTree, params: Params) -> Params:
        """Least squares for each linear system (Shumway and Stoffer 1982, equations 12 to 14; Holmes 2013)."""
        matrices, systems = self.matrices(params), self.systems(params)
        out = {}
        for name, part in systems.items():
            leaves, noise = SYSTEMS[name]
            matrix, out[noise] = part.m_step(stats[name], matrices[name], params[noise])
            for leaf in (leaf for leaf in leaves if leaf in params):
                width = 1 if params[leaf].ndim == 1 else params[leaf].shape[1]
                out[leaf], matrix = matrix[:, :width].reshape(params[leaf].shape), matrix[:, width:]
        return out

    def degenerate(self, params: Params) -> Array:
        parts = self.systems(params)
        return parts["state"].at_floor(params["state_noise"]) | parts["observation"].at_floor(params["observation_noise"])

    # --- the boundary of fit -----------------------------------------------------------------
    def validate(self, data: Any) -> Sequences:
        """Series with NaN where an entry is missing.

        Raises:
            ValueError: for shapes that do not fit, infinite values, missing inputs, or known entries that do not fit.
        """
        check_positive_int(self.n_states, "n_states")
        for name, value, choices in (
            ("state_noise", self.state_noise, NOISES),
            ("observation_noise", self.observation_noise, NOISES),
            ("initial", self.initial, INITIAL),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
        data = validated(data)
        like = self.blank(data)
        if unknown := set(self.fixed or {}) - set(like):
            raise ValueError(f"fixed must be for parameters, which are {sorted(like)}; got {sorted(unknown)}")
        if not is_traced(self.fixed):
            for name, part in self.systems(like).items():
                leaves, noise = SYSTEMS[name]
                for leaf in leaves:
                    value = (self.fixed or {}).get(leaf)
                    if value is not None and np.ndim(value) and np.shape(value) != np.shape(like[leaf]):
                        raise ValueError(f"fixed[{leaf!r}] must have shape {np.shape(like[leaf])}; got {np.shape(value)}")
                part.check(" and ".join(leaves), noise, self.matrices(like)[name].shape)
        return data

    def blank(self, data: PyTree) -> Params:
        series = as_series(data)
        shape = (self.n_states, series.y.shape[-1], series.inputs.shape[-1])
        like = blank(*shape, self.initial, self.state_noise, self.observation_noise)
        return self.with_known(jax.tree.map(lambda x: jnp.asarray(x, series.y.dtype), like))

    def with_known(self, params: Params) -> Params:
        """Parameters with what is known put in."""
        out = dict(params)
        for leaf in set(self.fixed or {}) & set(params):
            x = params[leaf]
            known = jnp.asarray(self._known(leaf, x.shape, leaf.endswith(("noise", "covariance")) and x.ndim == 2), x.dtype)
            out[leaf] = jnp.where(jnp.isnan(known), x, known)
        return out

    def initialize(self, key: Array | None, data: PyTree, weight: Array) -> Params:
        """Principal components of the data, moved at random if there is a key; see `state_start`."""
        return self.with_known(start(key, as_series(data), weight, self.blank(data), self.fixed or {}))

    def n_free_params(self, data: PyTree) -> int:
        """Free entries, those that only choose the coordinates of the state included."""
        total = 0
        for leaf, x in self.blank(data).items():
            value = (self.fixed or {}).get(leaf)
            free = np.isnan(np.broadcast_to(np.nan if value is None else np.asarray(value), x.shape))
            square = leaf.endswith(("noise", "covariance")) and x.ndim == 2
            total += int(np.tril(free).sum() if square else free.sum())
        return total


def blank(k: int, d: int, p: int, initial: str, state_noise: str, observation_noise: str) -> Params:
    """Parameters that know nothing, as NumPy arrays."""
    unit = {"full": np.eye, "diag": np.ones}
    out = {
        "transition": np.eye(k),
        "state_noise": unit[state_noise](k),
        "observation": np.ones((d, k)),
        "observation_noise": unit[observation_noise](d),
    }
    if initial != "diffuse":
        out |= {"initial_mean": np.zeros(k), "initial_covariance": np.eye(k)}
    if p:
        out |= {"transition_input": np.zeros((k, p)), "observation_input": np.zeros((d, p))}
    return out


def whitener(noise: Array, seen: Array) -> tuple[Any, Array]:
    """What gives (n, T, D, ...) unit noise where seen, zeros elsewhere; and (n,) log |2 pi noise of the seen| / 2."""
    log_two_pi = np.log(2 * np.pi).astype(noise.dtype)
    if noise.ndim == 1:
        scale = seen / jnp.sqrt(noise)
        return lambda x: scale[..., None] * x, (jnp.where(seen, jnp.log(noise) + log_two_pi, 0) / 2).sum((1, 2))
    pair = seen[..., :, None] & seen[..., None, :]
    lower = cholesky(jnp.where(pair, noise, jnp.eye(len(noise), dtype=noise.dtype)))
    inverse = jnp.where(pair, inverse_lower(lower), 0)
    log_det = jnp.log(jnp.diagonal(lower, axis1=-2, axis2=-1)).sum((1, 2))
    return lambda x: jnp.matmul(inverse, x, precision=PRECISION), log_det + log_two_pi / 2 * seen.sum((1, 2))


def imputer(noise: Array, seen: Array) -> tuple[Array, Array]:
    """(n, T, D, D) what the residuals of seen entries make of all, and the covariance that is left."""
    white, _ = whitener(noise, seen)
    inverse = white(jnp.broadcast_to(eye_like(noise), (*seen.shape, len(noise))))
    share = jnp.matmul(noise, jnp.matmul(jnp.swapaxes(inverse, -1, -2), inverse, precision=PRECISION), precision=PRECISION)
    left = noise - jnp.matmul(share, noise, precision=PRECISION)
    either = seen[..., :, None] | seen[..., None, :]
    return share, jnp.where(either, 0, (left + jnp.swapaxes(left, -1, -2)) / 2)
