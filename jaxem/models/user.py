"""A user's own model from functions: a joint density, or a log-marginal with its natural parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem import constraints as sets
from jaxem.data.validation import floating, numeric
from jaxem.latents.mixture import label_bias
from jaxem.model import Model
from jaxem.numerics.blocks import float_dtype, n_rows
from jaxem.numerics.logs import most_probable, softmax, sum_out
from jaxem.pytree import PyTree, static, struct
from jaxem.types import Params, Rows


class UserModel(Model):
    """What models from functions share: starting values, constraints and an M-step as they were given."""

    #: Parameters, or a `jax.tree_util.Partial` of a function from a random key to parameters.
    init: PyTree
    #: (stats, params) -> the parameters that have a closed form: all, or a tree in which others lack or are None.
    m_step_fn: ClassVar[Any] = None

    @property
    def needs_key(self) -> bool:  # type: ignore[override]
        """Whether each restart has a start of its own."""
        return callable(self.init)

    def start(self, key: Array | None) -> Params:
        """Parameters to start from."""
        return self.init(key) if callable(self.init) else self.init

    @property
    def m_step(self) -> Callable[[PyTree, Params], Params] | None:
        """The closed form, with what it leaves out as it was."""
        fn = self.m_step_fn
        return None if fn is None else lambda stats, params: completed(fn(stats, params), params)

    @property
    def without_closed_form(self) -> PyTree:
        """What `m_step` leaves out, by shapes alone."""
        if self.m_step_fn is None:
            return True
        start = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, self.start(jax.random.key(0))))
        closed = jax.eval_shape(lambda p: self.m_step_fn(self.natural(p), p), start)
        return completed(jax.tree.map(lambda _: False, closed), jax.tree.map(lambda _: True, start))

    def validate(self, data: PyTree) -> PyTree:
        """Arrays that lead with one N; floats in the dtype that JAX computes in.

        Raises:
            ValueError: where leading axes differ.
        """

        def leaf(path: Any, x: Any) -> np.ndarray:
            name = "data" + jax.tree_util.keystr(path)
            array = numeric(x, name)
            if array.ndim == 0:
                raise ValueError(f"{name} must lead with N; got a single number")
            return floating(array, name) if array.dtype.kind == "f" else array

        is_list = lambda x: isinstance(x, list)  # noqa: E731
        data = jax.tree_util.tree_map_with_path(leaf, data, is_leaf=is_list)
        lengths = {x.shape[0] for x in jax.tree.leaves(data)}
        if len(lengths) != 1:
            raise ValueError(f"data must be arrays that lead with one N; got leading axes {sorted(lengths)}")
        return data

    def check_fit(self, data: PyTree) -> None:
        """Raise ValueError where `init` lies outside the constraints, or a function gives another shape than it must."""
        sets.check(self.constraints, jax.tree.map(np.asarray, self.start(jax.random.key(0))))
        n = n_rows(data)  # a function for one indivisible datum need not know of more
        self.check_functions(jax.tree.map(lambda x: jax.ShapeDtypeStruct((min(n, 3), *x.shape[1:]), x.dtype), data))

    def check_columns(self, params: Params, data: PyTree) -> None:
        """Nothing: the functions alone know which parameters go with which data."""

    def check_functions(self, data: PyTree) -> None:
        """Raise ValueError where a function, by shapes alone, gives what no fit could use; `data`: a few rows."""
        params = self.template(data)
        if self.m_step_fn is not None:
            new = jax.eval_shape(lambda p: self.m_step(self.natural(p), p), params)  # type: ignore[misc]
            for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(new), strict=True):
                if x.shape != y.shape:
                    name = jax.tree_util.keystr(path, simple=True, separator=".")
                    raise ValueError(f"m_step must give {name} the shape {x.shape}; got {y.shape}")

    def template(self, data: PyTree) -> Params:
        dtype = float_dtype(data)
        return jax.tree.map(lambda x: jnp.asarray(x, dtype), self.start(jax.random.key(0)))

    def initialize(self, key: Array | None, data: PyTree, weight: Array) -> Params:
        """The starting values given: the same for every restart, unless they are a function of the key."""
        return jax.tree.map(lambda x: jnp.asarray(x, weight.dtype), self.start(key))

    def n_free_params(self, data: PyTree) -> int:
        """Number of free coordinates of `init`."""
        free = jax.eval_shape(lambda p: sets.to_free(self.constraints, p), self.template(data))
        return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(free))


def completed(partial: PyTree, whole: PyTree) -> PyTree:
    """`partial` with what lacks, or is None, taken from `whole`.

    Raises:
        ValueError: where `partial` has what `whole` has not.
    """
    if partial is None:
        return whole
    if isinstance(whole, dict):
        if not isinstance(partial, dict) or not partial.keys() <= whole.keys():
            got = f"keys {sorted(partial)}" if isinstance(partial, dict) else type(partial).__name__
            raise ValueError(f"m_step must give parameters among the keys {sorted(whole)}; got {got}")
        return type(whole)({key: completed(partial.get(key), whole[key]) for key in whole})
    return jax.tree.map(lambda new, old: old if new is None else new, partial, whole, is_leaf=lambda x: x is None)


@struct
class LogJoint(UserModel):
    """See `log_joint`."""

    fn: Callable[[Params, PyTree], Array] = static()
    natural_fn: Callable[[Params], PyTree] | None = static()
    linear_fn: Callable[[PyTree, PyTree], Array] | None = static()
    m_step_fn: Callable[[PyTree, Params], Params] | None = static()
    batched: bool = static()
    init: PyTree
    constraints: Any = None

    def natural(self, params: Params) -> PyTree:
        """Of the part with finite statistics; nothing where there is none."""
        return {} if self.natural_fn is None else self.natural_fn(params)

    def scores(self, params: Params, data: PyTree) -> Array:
        """(n, K) the part of log p(x_n, k) that has no finite statistics."""
        return self._rowwise(self.fn)(params, data)

    def log_joint(self, natural: PyTree, scores: Array, data: PyTree) -> Array:
        """(n, K) log p(x_n, k)."""
        return scores if self.linear_fn is None else scores + self._rowwise(self.linear_fn)(natural, data)

    def _rowwise(self, fn: Callable[[PyTree, PyTree], Array]) -> Callable[[PyTree, PyTree], Array]:
        return fn if self.batched else jax.vmap(fn, (None, 0))

    def log_marginal(self, natural: PyTree, data: PyTree, rows: Rows) -> Array:
        joint = self.log_joint(natural, rows.scores, data)  # type: ignore[arg-type]
        if rows.labels is not None:
            joint = joint + label_bias(rows.labels, joint.shape[1], joint.dtype).T
        return sum_out(joint, 1, rows.hard)

    def check_functions(self, data: PyTree) -> None:
        params = self.template(data)
        wanted = "(params, rows) -> (n, K)" if self.batched else "(params, x) -> (K,), for one datum x"
        scores = jax.eval_shape(self.scores, params, data)
        _check_shape("log_joint's fn", wanted, scores, not self.batched, 2, data)
        if self.linear_fn is not None:
            term = jax.eval_shape(lambda p, x: self._rowwise(self.linear_fn)(self.natural(p), x), params, data)  # type: ignore[arg-type]
            wanted = wanted.replace("params", "natural")
            _check_shape("log_joint's linear", wanted, term, not self.batched, 2, data)
            if term.shape != scores.shape:
                raise ValueError(f"linear and fn must give one shape; got {term.shape[1:]} and {scores.shape[1:]} for a datum")
        super().check_functions(data)

    def posterior(self, params: Params, data: PyTree) -> Array:
        """(N, K) p(k | x_n)."""
        return softmax(self.log_joint(self.natural(params), self.scores(params, data), data), 1)

    def predict(self, params: Params, data: PyTree) -> Array:
        """(N,) most probable latent value."""
        return most_probable(self.posterior(params, data))


@struct
class LogMarginal(UserModel):
    """See `log_marginal`."""

    natural_fn: Callable[[Params], PyTree] = static()
    log_marginal_fn: Callable[[PyTree, PyTree], Array] = static()
    m_step_fn: Callable[[PyTree, Params], Params] | None = static()
    init: PyTree
    constraints: Any = None

    def natural(self, params: Params) -> PyTree:
        return self.natural_fn(params)

    def log_marginal(self, natural: PyTree, data: PyTree, rows: Rows) -> Array:
        hard = {"hard": True} if rows.hard and "hard" in inspect.signature(self.log_marginal_fn).parameters else {}
        return self.log_marginal_fn(natural, data, **hard)

    def check_functions(self, data: PyTree) -> None:
        marginal = jax.eval_shape(lambda p, x: self.log_marginal_fn(self.natural(p), x), self.template(data), data)
        _check_shape("log_marginal", "(natural, data) -> (N,)", marginal, False, 1, data)
        super().check_functions(data)


def _check_shape(name: str, wanted: str, got: Any, one_datum: bool, ndim: int, data: PyTree) -> None:
    """`got`: what a function gave for `data`, rows first."""
    n = n_rows(data)
    seen = type(got).__name__
    if isinstance(got, jax.ShapeDtypeStruct):
        shape = got.shape
        if len(shape) == ndim and shape[0] == n and jnp.issubdtype(got.dtype, jnp.floating):
            return
        seen = f"{got.dtype} of shape {shape[1:] if one_datum else shape}"
    rows = "" if one_datum else f" for {n} rows"
    raise ValueError(f"{name} must be {wanted} floats; got {seen}{rows}")


def _as_tree(init: PyTree) -> PyTree:
    return jax.tree_util.Partial(init) if callable(init) else init


def log_joint(
    fn: Callable[[Params, PyTree], Array],
    *,
    init: PyTree | Callable[[Array], PyTree],
    constraints: Any = None,
    natural: Callable[[Params], PyTree] | None = None,
    linear: Callable[[PyTree, PyTree], Array] | None = None,
    m_step: Callable[[PyTree, Params], Params] | None = None,
    batched: bool = False,
) -> LogJoint:
    """A model from the joint log-density of one datum and each value of its latent variable.

    The M-step ascends the expected joint log-density by Optax, with passes over the data. Where some of it is
    linear in natural parameters, give that part by `natural` and `linear`: it costs no passes, and its expected
    statistics go to `m_step`, a closed form for some of the parameters. Optax takes the others, given those
    (Meng and Rubin 1993, ECM).

    Functions are hashed by identity: define them once. Where a probability may be zero use
    `jaxem.numerics.safe_log`.

    Args:
        fn: (params, x) -> (K,) log p(x, k | params) less the linear part, x one datum: the same tree as the
            data, without N.
        init: parameters to start from, a pytree of numbers and arrays, the weights of a neural network included;
            or a function from a random key to them, called once for every restart.
        constraints: prefix tree of `jaxem.constraints`; None is real numbers.
        natural: params -> natural parameters.
        linear: (natural, x) -> (K,), linear in `natural`; added to what `fn` gives.
        m_step: (stats, params) -> params with stats shaped like `natural`: their expectation, summed over the data.
            Keys left out, or None, are for Optax.
        batched: `fn` and `linear` take rows that lead with n, and give (n, K).

    Raises:
        ValueError: for only one of `natural` and `linear`, or `m_step` without them.
    """
    if (natural is None) != (linear is None):
        raise ValueError(f"natural and linear must be given together; got {'linear' if natural is None else 'natural'} alone")
    if m_step is not None and natural is None:
        raise ValueError("m_step must come with natural and linear, whose expected statistics it gets; got none")
    return LogJoint(
        fn=fn, natural_fn=natural, linear_fn=linear, m_step_fn=m_step, batched=batched, init=_as_tree(init),
        constraints=constraints,
    )  # fmt: skip


def log_marginal(
    *,
    natural: Callable[[Params], PyTree],
    log_marginal: Callable[[PyTree, PyTree], Array],
    init: PyTree | Callable[[Array], PyTree],
    m_step: Callable[[PyTree, Params], Params] | None = None,
    constraints: Any = None,
) -> LogMarginal:
    """A model from its log-marginal in natural parameters: the E-step is its gradient.

    Args:
        natural: params -> natural parameters, in which the complete-data log-density is linear; every
            log-normaliser that the data do not fix is a leaf of its own.
        log_marginal: (natural, data) -> (N,) log p(x_n), latent values summed out, e.g. by `jaxem.latents`.
            For `jaxem.HardEM` it takes a keyword `hard` too, and hands it on to them.
        init: parameters to start from, or a function from a random key to them.
        m_step: (stats, params) -> params with stats shaped like `natural`. Keys left out, or None, are ascended
            by Optax on <stats, natural>; so are all where it is None.
        constraints: prefix tree of `jaxem.constraints`; None is real numbers.
    """
    return LogMarginal(natural, log_marginal, m_step, _as_tree(init), constraints)
