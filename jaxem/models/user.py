"""A user's own model from functions: a joint density, or a log-marginal with its natural parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem import constraints as sets
from jaxem.blocks import float_dtype
from jaxem.latents.mixture import label_bias
from jaxem.numerics import softmax, sum_out
from jaxem.types import Model, Params, Rows, static, struct
from jaxem.validation import floating, numeric

PyTree = Any


class UserModel(Model):
    """What models from functions share: starting values as they were given, constraints as they were given."""

    init: PyTree
    needs_key: ClassVar[bool] = False

    def validate(self, data: PyTree) -> PyTree:
        """Arrays that lead with one N; floats in the dtype that JAX computes in.

        Raises:
            ValueError: where leading axes differ; where `init` lies outside the constraints.
        """

        def leaf(path: Any, x: Any) -> np.ndarray:
            name = "data" + jax.tree_util.keystr(path)
            array = numeric(x, name)
            if array.ndim == 0:
                raise ValueError(f"{name} must lead with N; got a single number")
            return floating(array, name) if array.dtype.kind == "f" else array

        is_list = lambda x: isinstance(x, list)  # noqa: E731 (a list of numbers is an array, not a tree)
        data = jax.tree_util.tree_map_with_path(leaf, data, is_leaf=is_list)
        lengths = {x.shape[0] for x in jax.tree.leaves(data)}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(f"data must be arrays that lead with one N > 0; got leading axes {sorted(lengths)}")
        sets.check(self.constraints, jax.tree.map(np.asarray, self.init))
        return data

    def blank(self, data: PyTree) -> Params:
        dtype = float_dtype(data)
        return jax.tree.map(lambda x: jnp.asarray(x, dtype), self.init)

    def initialize(self, key: Array | None, data: PyTree, weight: Array) -> Params:
        """The starting values given; more restarts need `jaxem.init.Each`."""
        del key
        return jax.tree.map(lambda x: jnp.asarray(x, weight.dtype), self.init)

    def n_free_params(self, data: PyTree) -> int:
        """Number of free coordinates of `init`."""
        free = jax.eval_shape(lambda p: sets.to_free(self.constraints, p), self.blank(data))
        return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(free))


@struct
class LogJoint(UserModel):
    """See `log_joint`."""

    fn: Callable[[Params, PyTree], Array] = static()
    init: PyTree
    constraints: Any = None

    def natural(self, params: Params) -> PyTree:
        """Nothing: a function has no finite statistics, only scores."""
        del params
        return {}

    def scores(self, params: Params, data: PyTree) -> Array:
        """(n, K) log p(x_n, k)."""
        return jax.vmap(self.fn, (None, 0))(params, data)

    def log_marginal(self, natural: PyTree, data: PyTree, rows: Rows) -> Array:
        del natural, data
        if rows.labels is None:
            return sum_out(rows.scores, 1)
        return sum_out(rows.scores + label_bias(rows.labels, rows.scores.shape[1], rows.scores.dtype).T, 1)

    def posterior(self, params: Params, data: PyTree) -> Array:
        """(N, K) p(k | x_n)."""
        return softmax(self.scores(params, data), 1)

    def predict(self, params: Params, data: PyTree) -> Array:
        """(N,) most probable latent value."""
        return self.scores(params, data).argmax(1)


@struct
class LogMarginal(UserModel):
    """See `log_marginal`."""

    natural_fn: Callable[[Params], PyTree] = static()
    log_marginal_fn: Callable[[PyTree, PyTree], Array] = static()
    m_step_fn: Callable[[PyTree, Params], Params] | None = static()
    init: PyTree
    constraints: Any = None

    @property
    def m_step(self) -> Callable[[PyTree, Params], Params] | None:
        return self.m_step_fn

    def natural(self, params: Params) -> PyTree:
        return self.natural_fn(params)

    def log_marginal(self, natural: PyTree, data: PyTree, rows: Rows) -> Array:
        del rows
        return self.log_marginal_fn(natural, data)


def log_joint(fn: Callable[[Params, PyTree], Array], *, init: PyTree, constraints: Any = None) -> LogJoint:
    """A model from the joint log-density of one datum and each value of its latent variable.

    The M-step ascends the expected joint log-density by Optax, with passes over the data.

    Args:
        fn: (params, x) -> (K,) log p(x, k | params), x one datum. Hashed by identity: define it once. Where a
            probability may be zero use `jaxem.numerics.safe_log`.
        init: parameters to start from, a pytree of numbers and arrays.
        constraints: prefix tree of `jaxem.constraints`; None is real numbers.
    """
    return LogJoint(fn, init, constraints)


def log_marginal(
    *,
    natural: Callable[[Params], PyTree],
    log_marginal: Callable[[PyTree, PyTree], Array],
    init: PyTree,
    m_step: Callable[[PyTree, Params], Params] | None = None,
    constraints: Any = None,
) -> LogMarginal:
    """A model from its log-marginal in natural parameters: the E-step is its gradient.

    Args:
        natural: params -> natural parameters, in which the complete-data log-density is linear; every
            log-normaliser that the data do not fix is a leaf of its own.
        log_marginal: (natural, data) -> (N,) log p(x_n).
        init: parameters to start from.
        m_step: (stats, params) -> params with stats shaped like `natural`; None ascends <stats, natural> by Optax.
        constraints: prefix tree of `jaxem.constraints`; None is real numbers.
    """
    return LogMarginal(natural, log_marginal, m_step, init, constraints)
