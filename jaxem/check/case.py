"""One model on a little data at a generic point, and the compiled pieces that the laws share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem import constraints as sets
from jaxem.check.report import Skip
from jaxem.data.sequences import rescaled_data
from jaxem.data.validation import check_same_shapes, check_weight
from jaxem.engine import m_step as maximization
from jaxem.engine.ascent import climb_by
from jaxem.engine.e_step import e_step, update_local, weighted_total
from jaxem.fitting.checks import valid_for_fit
from jaxem.fitting.coordinates import floored
from jaxem.model import Model
from jaxem.numerics.blocks import Blocks, cut, float_dtype, n_rows
from jaxem.numerics.trees import cast
from jaxem.pytree import PyTree
from jaxem.types import Params, Rows

#: Rows that the laws look at: enough for a generic point, few enough for seconds.
MAX_ROWS = 200
#: Free coordinates beyond which laws about matrices of second derivatives are skipped.
MAX_FREE = 200
#: Data drawn from the model: enough to see a mean score of a fifth of a standard deviation, and a full rank.
DRAWS = 2_000
#: Two orders of summation differ by about sqrt(n) eps of the sum of magnitudes, and a posterior inherits
#: the rounding of scores that may be 100 times its own exponent: three digits above eps cover both.
ROUNDING = 1e3


def chart(model: Model, params: Params) -> tuple[Array, Callable[[Array], Params]]:
    """See `constraints.chart`."""
    return sets.chart(model.constraints, params)


class Expected(NamedTuple):
    """What one E-step expects, and of what.

    Attributes:
        params: where it was taken.
        data: (n,) rows.
        weight: (n,) of each.
        stats: expected sufficient statistics.
        local: per-datum parameters, rows; or None.
    """

    params: Params
    data: PyTree
    weight: Array
    stats: PyTree
    local: PyTree


def rows_log_prob(model: Model, about: Params, params: Params, data: PyTree, local: PyTree) -> Array:
    """(n,) log-marginal at `params`, arithmetic taken about `about`, per-datum parameters held."""
    safe = model.exact(about)
    scores = model.scores(params, data) if model.scores else None
    return safe.log_marginal(safe.pack(safe.natural(params)), data, Rows(local=local, scores=scores))


def flat_local(local: PyTree, n: int) -> PyTree:
    """Per-datum parameters of blocks as rows."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:n], local)


#: The laws run each program once or twice: compiling is all that takes time.
quick_jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)


# --- compiled once for each structure of a model and shape of its data ------------------------
def whole_expectation(model: Model, params: Params, data: PyTree, weight: Array, block_size: int) -> tuple[Array, PyTree]:
    """Log-likelihood and statistics of one E-step."""
    found = e_step(model, params, cut(data, weight, None, block_size))
    return found.loglik, found.stats


expectation = quick_jit(whole_expectation, static_argnames="block_size")


@quick_jit
def row_expectations(model: Model, params: Params, data: PyTree) -> tuple[Array, PyTree]:
    """(n,) log-likelihoods and statistics, each row as data by itself."""

    def one(row):
        row = jax.tree.map(lambda x: x[None], row)
        return whole_expectation(model, params, row, jnp.ones((1,), float_dtype(data)), 1)

    return jax.vmap(one)(data)


@quick_jit
def derived_expectation(model: Model, params: Params, data: PyTree, weight: Array, local: PyTree) -> tuple[Array, PyTree]:
    """The E-step as a gradient, whatever `e_step` the model brings."""
    safe = model.exact(params)
    scores = model.scores(params, data) if model.scores else None
    rows = Rows(local=local, scores=scores)
    total = lambda eta: weighted_total(safe.log_marginal(safe.pack(eta), data, rows), weight)  # noqa: E731
    return jax.value_and_grad(total)(safe.natural(params))


def first_local(model: Model, params: Params, data: PyTree) -> PyTree:
    """Per-datum parameters at `params`, started cold; rows."""
    blocks = one_block(data, None)
    return flat_local(update_local(model.exact(params), params, blocks, None), n_rows(data))


cold_local = quick_jit(first_local)


@quick_jit
def row_gradients(model: Model, params: Params, data: PyTree, local: PyTree) -> tuple[Array, Array]:
    """(n,) log-probabilities and (n, P) their gradients in free coordinates."""
    vector, back = chart(model, params)

    def one(row, local):
        row, local = jax.tree.map(lambda x: x[None], (row, local))
        return jax.value_and_grad(lambda v: rows_log_prob(model, params, back(v), row, local)[0])(vector)

    return jax.vmap(one)(data, local)


@quick_jit
def log_prob(model: Model, params: Params, data: PyTree) -> Array:
    """(n,) the model's own `log_prob`."""
    return model.log_prob(params, data)


@quick_jit
def m_step(model: Model, at: Expected) -> Params:
    """One M-step."""
    local = jax.tree.map(lambda x: x[None], at.local)
    climb = climb_by(None, 100, at.weight.sum())
    return maximization.m_step(model, at.stats, at.params, one_block(at.data, at.weight), local, climb)


def q_of(model: Model, at: Expected) -> Callable[[Params], Array]:
    """The M-step's objective after an E-step."""
    local = jax.tree.map(lambda x: x[None], at.local)
    return maximization.q_function(model, at.stats, at.params, one_block(at.data, at.weight), local)


def one_block(data: PyTree, weight: Array | None) -> Blocks:
    """All rows in one block."""
    return cut(data, weight, None, n_rows(data))


@quick_jit
def _initialize(model: Model, key: Array, data: PyTree, weight: Array) -> Params:
    return model.initialize(key, data, weight)


@functools.partial(quick_jit, static_argnames="n")
def _sample(model: Model, key: Array, params: Params, n: int) -> PyTree:
    return model.sample(key, params, n)


@quick_jit
def _sample_like(model: Model, key: Array, params: Params, data: PyTree) -> PyTree:
    return model.sample_like(key, params, data)


@quick_jit
def _moved(model: Model, params: Params, step: Array) -> Params:
    vector, back = chart(model, params)
    return cast(back(vector + step), step.dtype)


class Case:
    """What every law is given.

    Attributes:
        model: the model, in the coordinates in which `fit` would compute.
        original: the model as given.
        affine: the change between the two, or None; `original_params`, `original_data` are in the model's own units.
        data: at most `MAX_ROWS` rows.
        weight: (n,) as given, or ones.
        n: number of rows.
        key: random key.
        params: a generic point: the start, moved a little in free coordinates.
        dtype: of the computation.
        eps: its rounding unit.
        shared: what one law leaves to another.
    """

    def __init__(self, model: Model, data: PyTree, key: Array, params: Params | None, weight: Any):
        data = valid_for_fit(model, data)
        n = n_rows(data)
        dtype = float_dtype(data)
        weight = np.ones(n) if weight is None else check_weight(weight, n)
        if params is not None and (template := model.template(data)) is not None:
            check_same_shapes(params, template, "params")
        rng = np.random.default_rng(int(jax.random.bits(jax.random.fold_in(key, 0))))
        present = np.flatnonzero(weight > 0)
        rows = np.sort(rng.choice(present, min(len(present), MAX_ROWS), replace=False))
        data = jax.tree.map(lambda x: np.asarray(x)[rows], data)

        model = floored(model, jax.tree.map(jnp.asarray, data), jnp.asarray(weight[rows], dtype))
        self.original, self.original_data, self.original_params = model, jax.tree.map(jnp.asarray, data), None
        self.affine = model.coordinates(data, np)
        if self.affine is not None:
            data = rescaled_data(data, self.affine)
            model = cast(model.rescaled(self.affine), dtype)
            params = None if params is None else model.rescale_params(jax.tree.map(np.asarray, params), self.affine)
        self.model = model
        self.data = jax.tree.map(jnp.asarray, data)
        self.n = len(rows)
        self.weight = jnp.asarray(weight[rows], dtype)
        self.key = key
        self.dtype = dtype
        self.eps = float(jnp.finfo(dtype).eps)
        self.rng = rng
        self.shared: dict[str, Any] = {}
        if params is None:
            params = _initialize(self.model, jax.random.fold_in(key, 1), self.data, self.weight)
        self.start = cast(jax.tree.map(jnp.asarray, params), dtype)
        # At a start or an optimum some gradients vanish, and a law about them would hold of itself.
        self.params = self.nearby(self.start, 0.1)
        if self.affine is not None:
            back = jax.tree.map(lambda x: np.asarray(x, np.float64), self.affine).inverted()
            self.original_params = cast(self.model.rescale_params(jax.tree.map(np.asarray, self.params), back), dtype)

    def nearby(self, params: Params, distance: float) -> Params:
        """A random point about `distance` away in each free coordinate."""
        size = sum(x.size for x in jax.tree.leaves(jax.eval_shape(lambda p: chart(self.model, p)[0], params)))
        return _moved(self.model, params, jnp.asarray(self.rng.normal(size=size) * distance, self.dtype))

    def expectation(self, params: Params | None = None, data: PyTree = None, weight: Any = None, block_size: int | None = None):
        """(loglik, stats) of the engine's E-step; what is not given is the case's own."""
        data = self.data if data is None else data
        weight = self.weight if weight is None else jnp.asarray(weight, self.dtype)
        params = self.params if params is None else params
        return expectation(self.model, params, data, weight, block_size or n_rows(data))

    @functools.cached_property
    def rows(self) -> tuple[np.ndarray, PyTree]:
        """Log-likelihood and statistics of each row by itself, float64."""
        return jax.tree.map(lambda x: np.asarray(x, np.float64), row_expectations(self.model, self.params, self.data))

    def sum_of_rows(self, weight: Any) -> tuple[Any, PyTree]:
        """What an E-step with `weight` must return."""
        weight = np.asarray(weight, np.float64)
        return jax.tree.map(lambda x: np.tensordot(weight, x, 1), self.rows)

    def bound(self, weight: Any, factor: float = ROUNDING) -> PyTree:
        """How far rounding may take such a sum: `factor` eps of its largest sum of magnitudes, leaf by leaf."""
        weight = np.abs(np.asarray(weight, np.float64))
        size = jax.tree.map(lambda x: np.max(np.tensordot(weight, np.abs(x), 1), initial=0), self.rows)
        # Rounding of a row's log-likelihood is at least that of a number of order one.
        return jax.tree.map(lambda x: factor * self.eps * (x + weight.sum() * 1e-3), size)

    @functools.cached_property
    def local(self) -> PyTree:
        """Per-datum parameters at `params`, or None."""
        return cold_local(self.model, self.params, self.data)

    @functools.cached_property
    def e(self) -> tuple[Array, PyTree]:
        """The E-step at `params`."""
        return self.expectation()

    @functools.cached_property
    def expected(self) -> Expected:
        """The E-step at `params`, with all that an M-step needs."""
        return Expected(self.params, self.data, self.weight, self.e[1], self.local)

    @functools.cached_property
    def after(self) -> Params:
        """The M-step from `params`."""
        return m_step(self.model, self.expected)

    def sample(self, n: int, salt: int) -> PyTree:
        """N data from the model at `params`; where it can draw them only for given inputs, for those of the data in turn."""
        kind, key = type(self.model), jax.random.fold_in(self.key, salt)
        if kind.sample is Model.sample and kind.sample_like is Model.sample_like:
            raise Skip("the model has no sample")
        try:
            if kind.sample is Model.sample:
                like = jax.tree.map(lambda x: x[jnp.arange(n) % self.n], self.data)
                return _sample_like(self.model, key, self.params, like)
            return _sample(self.model, key, self.params, n)
        except NotImplementedError:
            raise Skip("the model has no sample") from None

    @functools.cached_property
    def draws(self) -> PyTree:
        """Data from the model, many."""
        return self.sample(DRAWS if self.n > 1 else DRAWS // 10, 2)

    @functools.cached_property
    def drawn(self) -> np.ndarray:
        """(n, P) gradients of log_prob, in free coordinates, on `draws`; float64."""
        _, gradient = row_gradients(self.model, self.params, self.draws, cold_local(self.model, self.params, self.draws))
        return np.asarray(gradient, np.float64)

    def needs_rows(self) -> None:
        """Skip where the data cannot be taken apart."""
        if self.n == 1:
            raise Skip("the data are one indivisible datum (N = 1)")

    def needs_moderate_size(self) -> int:
        """Number of free coordinates; skip where a matrix of them would be large."""
        count = chart(self.model, self.params)[0].size
        if count > MAX_FREE:
            raise Skip(f"{count} free coordinates, more than {MAX_FREE}")
        return count
