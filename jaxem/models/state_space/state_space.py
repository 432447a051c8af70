"""Linear-Gaussian state space models (Kalman 1960; EM by Shumway and Stoffer 1982)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem import constraints as sets
from jaxem.data.sequences import Sequences, as_sequences
from jaxem.data.validation import check_positive_int, is_traced
from jaxem.latents import gaussian_chain, kalman
from jaxem.latents.gaussian_chain import GaussianChain
from jaxem.model import Model, one_program
from jaxem.models.state_space.inference import StateInference
from jaxem.models.state_space.linear_gaussian import NOISES, LinearGaussian, System
from jaxem.models.state_space.moments import observed_chain, statistics, tilts
from jaxem.models.state_space.series import Series, as_series, check_enough, validated
from jaxem.models.state_space.start import start
from jaxem.models.state_space.units import POWERS, seen_values, still_states, units
from jaxem.numerics.floors import known_floor, least_variance
from jaxem.numerics.linalg import PRECISION, cholesky
from jaxem.numerics.trees import module_of
from jaxem.pytree import PyTree, static, struct
from jaxem.types import Params, Rows

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
    `inputs` (T,) or (T, P) instead of y. NaN in y is missing, a single entry or a whole step. Inputs are known at every
    step; `jaxem.sequences` takes a step whose inputs are all NaN for a missing one, with the inputs of another step.

    Attributes:
        n_states: K.
        fixed: what is known: a dict from parameters' names to arrays of their shapes, NaN where an entry is free. A
            number stands for all entries, or for that multiple of the identity of a (K, K) or (D, D) noise. Noise that is
            not diagonal is free or fixed block by block; a variance of zero is exact (an observation that contradicts a
            state that is certain has a log-likelihood of -inf).
        state_noise: "full" or "diag".
        observation_noise: "full" or "diag".
        initial: "free", or "diffuse": nothing is known of the first state, the likelihood is the exact diffuse one (Durbin
            and Koopman 2012, section 7.2.2).
        floor: least variance, or eigenvalue, of all free noise; or one for each column of y, of the observations' noise.
            None: 1e-8 times the variance of each column. Where the next step of a column, or of a combination of columns,
            is predicted to within it, a restart is DEGENERATE; that a single noise vanishes is no collapse.
        unit: log of the unit of data in other coordinates than they came in; a fit finds it. None: they are as they came.
    """

    n_states: int = static()
    fixed: Any = None
    state_noise: str = static(NOISES, default="full")
    observation_noise: str = static(NOISES, default="diag")
    initial: str = static(INITIAL, default="free")
    floor: float | Array | None = None
    origin: Any = None
    unit: Any = None

    missing: ClassVar[str] = "marginal"
    needs_key: ClassVar[bool] = False

    # --- the three linear systems ------------------------------------------------------------
    def _names(self) -> list[str]:
        return [name for name in SYSTEMS if name != "initial" or self.initial != "diffuse"]

    def _noise_kind(self, name: str) -> str:
        return {"state": self.state_noise, "observation": self.observation_noise}.get(name, "full")

    def _known(self, leaf: str, shape: tuple[int, ...]) -> Any:
        """Known entries of a parameter, NaN where free; None: all free."""
        value = (self.fixed or {}).get(leaf)
        if value is None or np.ndim(value):
            return value
        return value * (np.eye(shape[0]) if _is_covariance(leaf, shape) else np.ones(shape))

    def systems(self, like: Params) -> dict[str, LinearGaussian]:
        """The linear systems, for parameters of the shapes of `like`."""
        xp: Any = jnp if is_traced(self.fixed) else np
        out = {}
        for name in self._names():
            leaves, noise = SYSTEMS[name]
            shapes = {leaf: np.shape(like[leaf]) for leaf in leaves if leaf in like}
            parts = [self._known(leaf, shape) for leaf, shape in shapes.items()]
            whole = None
            if any(part is not None for part in parts):
                parts = [np.full(shape, np.nan) if part is None else part for part, shape in zip(parts, shapes.values())]
                whole = xp.concatenate([xp.reshape(part, (len(part), -1)) for part in parts], 1)
            known = self._known(noise, np.shape(like[noise]))
            floor = known_floor(self.floor)
            if name == "initial" or (name == "state" and np.ndim(floor)):
                floor = 0.0
            origin = None if self.origin is None else self.origin[name]
            out[name] = LinearGaussian(self._noise_kind(name), whole, known, floor, origin)
        return out

    def matrices(self, params: Params) -> dict[str, Array]:
        """The matrix of each system, the inputs' columns last."""
        whole = lambda leaves: [params[leaf] for leaf in leaves if leaf in params]  # noqa: E731
        parts = {name: whole(SYSTEMS[name][0]) for name in self._names()}
        return {name: jnp.concatenate([x.reshape(len(x), -1) for x in part], 1) for name, part in parts.items()}

    def centered(self, params: Params) -> StateSpace:
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
        return template(k, d, n_inputs, self.initial, self.state_noise, self.observation_noise)

    def log_marginal(self, natural: PyTree, data: PyTree, rows: Rows) -> Array:
        del rows
        series = as_series(data)
        parts = self.systems(self._like(natural, series.inputs.shape[-1]))
        found = {name: part.system(natural[name]) for name, part in parts.items()}
        chain, constant = self._observed_chain(found, series)
        tilt, lean, more = tilts(found, series)
        return gaussian_chain.log_partition(dataclasses.replace(chain, tilt=tilt, lean=lean)) + constant + more

    def chain(self, params: Params, data: PyTree) -> tuple[GaussianChain, Array]:
        """The chain of states with what the data say of each, and (B,) the log-normalisers of the observations."""
        return self._observed_chain(self._given(params), as_series(data))

    def _observed_chain(self, found: dict[str, System], series: Series) -> tuple[GaussianChain, Array]:
        chain, constant = observed_chain(found, series)
        return dataclasses.replace(chain, unit=self.unit), constant

    def _given(self, params: Params) -> dict[str, System]:
        params = jax.tree.map(jnp.asarray, params)
        return {name: System(matrix, params[SYSTEMS[name][1]]) for name, matrix in self.matrices(params).items()}

    @one_program
    def log_prob(self, params: Params, data: PyTree) -> Array:
        """(B,) log-likelihood, exact diffuse if the first state is."""
        chain, constant = self.chain(params, data)
        return kalman.log_likelihood(chain) + constant

    # --- coordinates -------------------------------------------------------------------------
    def coordinates(self, data: PyTree, xp: Any, present: Any = None) -> Any:
        """A common unit for all columns; about their means, where the states can take a change of level up."""
        still = still_states(self.fixed or {}) if self.initial == "diffuse" else None
        return units(as_sequences(data), still, xp, present)

    def log_abs_det(self, data: PyTree, affine: Any) -> Any:
        return affine.log_abs_det(seen_values(as_sequences(data))[1]).sum(-1)

    def rescaled(self, affine: Any) -> StateSpace:
        fixed = {leaf: value * affine.matrix ** POWERS[leaf] for leaf, value in (self.fixed or {}).items()}
        unit = None
        if self.initial == "diffuse":
            unit = (0.0 if self.unit is None else self.unit) - module_of(affine.matrix).log(affine.matrix)
        floor = None if self.floor is None else self.floor * affine.matrix**2
        return dataclasses.replace(self, fixed=fixed or None, floor=floor, unit=unit)

    def rescale_params(self, params: Params, affine: Any) -> Params:
        return {leaf: x * affine.matrix ** POWERS[leaf] for leaf, x in params.items()}

    # --- EM ----------------------------------------------------------------------------------
    def e_step(self, params: Params, data: PyTree, weight: Array, rows: Rows) -> tuple[Array, PyTree]:
        """Moments of the smoother (Shumway and Stoffer 1982, equations 9 to 11), in the same residuals as `natural`."""
        del rows
        series = as_series(data)
        given = self._given(params)
        chain, constant = self._observed_chain(given, series)
        smoothed = kalman.smooth(chain)
        loglik = jnp.where(weight > 0, weight * (smoothed.log_mass + constant), 0).sum()
        return loglik, statistics(self.systems(params), given, smoothed, series, weight)

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

    def floored(self, data: PyTree, weight: Array | None) -> StateSpace:
        if self.floor is not None:
            return self
        series = as_series(data)
        y = jnp.where(series.seen, series.y, jnp.nan).reshape(-1, series.y.shape[-1])
        each = None if weight is None else jnp.repeat(weight, series.y.shape[1])
        return dataclasses.replace(self, floor=least_variance(y, each))

    def _of_noise(self, params: Params, found: Callable[[str, LinearGaussian, Array], Array]) -> dict[str, Array]:
        """Bools shaped like `params`: what is `found` of the noise of states and observations, False elsewhere."""
        out, systems = super().at_floor(params), self.systems(params)
        for name in ("state", "observation"):
            noise = SYSTEMS[name][1]
            out[noise] = jnp.broadcast_to(found(name, systems[name], params[noise]), params[noise].shape)
        return out

    def at_floor(self, params: Params) -> dict[str, Array]:
        """All free noise, where the next step is known but for the floor."""
        systems, floor = self.systems(params), jnp.asarray(known_floor(self.floor), params["transition"].dtype)
        noises = {name: params[SYSTEMS[name][1]] for name in ("state", "observation")}
        if floor.ndim:
            least = jnp.diag(floor)
        else:
            least = _predicted(params, **{name: floor * _unit(systems[name].free(x)) for name, x in noises.items()})
        left = _predicted(params, **noises) - 1.001 * least
        certain = (floor.max() > 0) & ~jnp.isfinite(cholesky(left)).all()
        return self._of_noise(params, lambda _, part, noise: certain & part.free(noise))

    def at_limit(self, params: Params) -> dict[str, Array]:
        """Single noises at their floors; of states, those that no column of y shows."""
        least = jnp.asarray(known_floor(self.floor), params["transition"].dtype)
        if least.ndim:
            shown = jnp.square(_shown(params)).sum(0)
            least = (least[:, None] / jnp.where(shown > 0, shown, 1)).min(0)

        def found(name: str, part: LinearGaussian, noise: Array) -> Array:
            return (dataclasses.replace(part, floor=least) if name == "state" else part).at_floor(noise)

        return self._of_noise(params, found)

    # --- the boundary of fit -----------------------------------------------------------------
    def validate(self, data: Any) -> Sequences:
        """Series with NaN where an entry is missing.

        Raises:
            ValueError: for shapes that do not fit, infinite values, missing inputs, or known entries that do not fit.
        """
        check_positive_int(self.n_states, "n_states")
        data = validated(data)
        like = self._shapes(data)
        if unknown := set(self.fixed or {}) - set(like):
            raise ValueError(f"fixed must be for parameters, which are {sorted(like)}; got {sorted(unknown)}")
        for leaf, value in (self.fixed or {}).items():
            if np.ndim(value) and np.shape(value) != like[leaf].shape:
                raise ValueError(f"fixed[{leaf!r}] must have shape {like[leaf].shape}; got {np.shape(value)}")
        if not is_traced(self.fixed):
            for name, part in self.systems(like).items():
                part.check(" and ".join(SYSTEMS[name][0]), SYSTEMS[name][1])
        return data

    def check_fit(self, data: Sequences) -> None:
        check_enough(data)

    def _shapes(self, data: PyTree) -> Params:
        series = as_series(data)
        like = template(
            self.n_states, series.y.shape[-1], series.inputs.shape[-1], self.initial, self.state_noise, self.observation_noise
        )
        return {leaf: x.astype(series.y.dtype) for leaf, x in like.items()}

    def template(self, data: PyTree) -> Params:
        return self.with_known(self._shapes(data))

    def with_known(self, params: Params) -> Params:
        """Parameters with what is known put in."""
        out = jax.tree.map(jnp.asarray, dict(params))
        for leaf in set(self.fixed or {}) & set(params):
            known = jnp.asarray(self._known(leaf, out[leaf].shape), out[leaf].dtype)
            out[leaf] = jnp.where(jnp.isnan(known), out[leaf], known)
        return out

    def initialize(self, key: Array | None, data: PyTree, weight: Array) -> Params:
        """Principal components of the data, moved at random if there is a key; see `start`."""
        return self.with_known(start(key, as_series(data), weight, self.template(data), self.fixed or {}))

    def n_free_params(self, data: PyTree) -> int:
        """Free entries, less those that only choose the coordinates of the state."""
        like = self._shapes(data)
        known = {
            leaf: np.broadcast_to(np.nan if (v := self._known(leaf, x.shape)) is None else v, x.shape)
            for leaf, x in like.items()
        }
        free = {leaf: np.isnan(value) for leaf, value in known.items()}
        entries = sum(int((np.tril(on) if _is_covariance(leaf, on.shape) else on).sum()) for leaf, on in free.items())
        return entries - _n_coordinate_changes(self.n_states, known, free)


def _n_coordinate_changes(k: int, known: dict[str, np.ndarray], free: dict[str, np.ndarray]) -> int:
    """Dimension of the changes of the state's coordinates that keep what is known, at parameters like any other."""
    rng = np.random.default_rng(0)
    params = {leaf: np.where(free[leaf], rng.normal(size=value.shape), value) for leaf, value in known.items()}
    params = {leaf: x + x.T if _is_covariance(leaf, x.shape) else x for leaf, x in params.items()}
    params["initial_mean"] = params.get("initial_mean", np.zeros(k))
    everywhere, held = [], []
    for change in np.eye(k * k).reshape(-1, k, k):  # to first order, of x -> (1 + change) x
        moved = {"transition": change @ params["transition"] - params["transition"] @ change}
        moved["observation"] = -params["observation"] @ change
        for leaf in {"initial_mean", "transition_input"} & params.keys():
            moved[leaf] = change @ params[leaf]
        off = np.zeros(0)
        for leaf in {"initial_covariance", "state_noise"} & params.keys():
            noise = params[leaf] if params[leaf].ndim == 2 else np.diag(params[leaf])
            moved[leaf] = change @ noise + noise @ change.T
            if params[leaf].ndim == 1:  # and stays diagonal
                off, moved[leaf] = moved[leaf][~np.eye(k, dtype=bool)], np.diagonal(moved[leaf])
        everywhere.append(np.concatenate([off, *(moved[leaf].ravel() for leaf in sorted(moved.keys() & free.keys()))]))
        held.append(np.concatenate([off, *(moved[leaf][~free[leaf]] for leaf in sorted(moved.keys() & free.keys()))]))
    rank = lambda rows: int(np.linalg.matrix_rank(np.array(rows))) if np.size(rows) else 0  # noqa: E731
    return rank(everywhere) - rank(held)


def _shown(params: Params) -> Array:
    """(K, D, K) what a unit of noise in each state makes of y, then and at the next K - 1 steps."""

    def later(seen: Array, _: None) -> tuple[Array, Array]:
        return jnp.matmul(seen, params["transition"], precision=PRECISION), seen

    return jax.lax.scan(later, params["observation"], length=params["transition"].shape[0])[1]


def _predicted(params: Params, state: Array, observation: Array) -> Array:
    """(D, D) variance of y given the state K steps before, which vanishes where that of the one-step prediction does."""
    shown = _shown(params)
    noise = jnp.diag(state) if state.ndim == 1 else state
    of_states = jnp.einsum("tdk,kl,tel->de", shown, noise, shown, precision=PRECISION)
    return of_states + (jnp.diag(observation) if observation.ndim == 1 else observation)


def _unit(free: Array) -> Array:
    """Ones where noise is free, of a matrix on its diagonal."""
    return free if free.ndim == 1 else free & jnp.eye(len(free), dtype=bool)


def _is_covariance(leaf: str, shape: tuple[int, ...]) -> bool:
    return leaf in {noise for _, noise in SYSTEMS.values()} and len(shape) == 2


def template(k: int, d: int, p: int, initial: str, state_noise: str, observation_noise: str) -> Params:
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
