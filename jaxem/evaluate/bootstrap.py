"""Error bars from refits: data drawn again, weights drawn again, or data drawn from the model; one vmap of `fit`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.data.sequences import rescaled_data
from jaxem.data.validation import check_positive_int, is_traced
from jaxem.engine.stop import Stop
from jaxem.evaluate.align import align, component_axes
from jaxem.evaluate.information import checked
from jaxem.evaluate.refit import Refit, refit_of
from jaxem.fitting.checks import check_key, check_model
from jaxem.fitting.coordinates import coordinates, floored, log_abs_det, rescaled, unmixed
from jaxem.fitting.layout import rows_width
from jaxem.model import Model
from jaxem.numerics.blocks import choose_block_size, float_dtype, n_rows
from jaxem.numerics.trees import cast
from jaxem.pytree import PyTree, static, struct
from jaxem.types import Params, Result, Status

METHODS = ("nonparametric", "weighted", "parametric")
#: Refits under one vmap on a CPU. The loop runs until the slowest of them ends: of a thousand one may take 40
#: times the mean, and only its neighbours should wait.
SIDE_BY_SIDE = 64
#: EM creeps on flat likelihoods, and a warm start must leave its place: what is left below the maximum counts
#: in absolute terms, a difference of 1/200 in log-likelihood being a tenth of a standard error.
DEFAULT_STOP = Stop(loglik_rtol=1e-12, loglik_atol=1e-6)


@struct
class Bootstrap:
    """Parameters of B refits.

    Attributes:
        params: leaves (B, ...), components named as in `estimate`.
        status: (B,) int32 `Status` of each refit.
        loglik: (B,) log-likelihood of each refit on its own data or weights.
        estimate: the parameters that every refit started from.
        method: "nonparametric", "weighted" or "parametric".
    """

    params: Params
    status: Array
    loglik: Array
    estimate: Params
    method: str = static()

    @property
    def sound(self) -> Array:
        """(B,) bools: refits that count, neither failed nor with a component at its floor."""
        return (self.status == Status.CONVERGED) | (self.status == Status.MAX_STEPS)

    def _kept(self) -> Params:
        return jax.tree.map(lambda x: jnp.where(self.sound.reshape(-1, *(1,) * (x.ndim - 1)), x, jnp.nan), self.params)

    def standard_errors(self, function: Callable[[Params], PyTree] | None = None) -> PyTree:
        """Standard deviations over the sound refits, of the parameters or a function of them."""
        of_each = self._kept() if function is None else jax.vmap(function)(self._kept())
        return jax.tree.map(lambda x: jnp.nanstd(x, 0, ddof=1), of_each)

    def intervals(self, level: float | Array = 0.95) -> tuple[Params, Params]:
        """Percentiles of the sound refits: two trees shaped like the parameters."""
        tail = (1 - jnp.asarray(level)) / 2
        ends = lambda q: jax.tree.map(lambda x: jnp.nanquantile(x, q.astype(x.dtype), 0), self._kept())  # noqa: E731
        return ends(tail), ends(1 - tail)

    def __str__(self) -> str:
        if is_traced(self.status):
            return repr(self)
        counts = {s.name: int(np.sum(np.asarray(self.status) == s)) for s in Status}
        ended = ", ".join(f"{n} {name}" for name, n in counts.items() if n)
        return f"{self.method} bootstrap of {len(self.status)} refits: {ended}"


def bootstrap(
    model: Model,
    params: Params | Result,
    data: PyTree,
    *,
    key: Array,
    n_samples: int = 200,
    method: str = "nonparametric",
    weight: Any = None,
    labels: Any = None,
    **options: Any,
) -> Bootstrap:
    """Refit the model B times from `params`: to resampled data, to random weights, or to data from the model.

    - "nonparametric": each datum counts as often as it is drawn among N with replacement (Efron 1979).
    - "weighted": exponential weights, uniform on the simplex (Newton and Raftery 1994). No datum ever
      disappears, which spares small components.
    - "parametric": N data from the model at `params`.

    Components of a refit are named after those of `params` by the assignment under which their posteriors
    overlap most on `data`; factors are turned to their canonical rotation. Works inside `jax.jit`.

    Args:
        model: the model.
        params: parameters, or the `Result` that holds them: the fit to `data`.
        data: as for `fit`.
        key: JAX random key; refit b depends on (key, b) alone.
        n_samples: B.
        method: one of the above.
        weight: (N,) how often each datum was seen; in "parametric" whole numbers.
        labels: (N,) known latent values, -1 for unknown; not in "parametric".
        **options: of `jaxem.fit`: stop, max_steps, algorithm, block_size, ... `stop` is tighter than there by
            default: EM that creeps must be given the time to leave its warm start.

    Returns:
        A `Bootstrap`; see `standard_errors` and `intervals`.

    Raises:
        ValueError: for an unknown method, and whatever the model, the weights or the labels refuse.
        TypeError: for a model that cannot sample data of the given shapes, in "parametric".
    """
    check_model(model)
    check_key(model, None, key)
    if key is None:
        raise ValueError("key must be a JAX random key, e.g. jax.random.key(0), to draw from; got None")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    n_samples = check_positive_int(n_samples, "n_samples", 2)
    params = params.params if isinstance(params, Result) else params
    if is_traced(model, params, data, weight, labels, key):
        data = jax.tree.map(jnp.asarray, data)
        if weight is not None and method != "weighted":
            raise TypeError(f"weight inside jit needs method='weighted': {method!r} must know how many data to draw")
    else:
        data, weight, labels = checked(model, params, data, weight, labels)
        model.check_fit(data)
    if method == "parametric":
        if labels is not None:
            raise ValueError("labels must be None for method='parametric': sampled data have none")
        data, weight = _repeated(data, weight), None
        _check_sampler(model, params, data)
    total = n_rows(data) if weight is None or method != "nonparametric" else round(float(np.sum(weight)))
    params = cast(jax.tree.map(jnp.asarray, params), float_dtype(data))
    options.setdefault("stop", DEFAULT_STOP)
    refit = refit_of(model, data, weight=weight, labels=labels, key=key, init=params, **options)
    run = _bootstrap if is_traced(refit) else _bootstrap_jit
    return run(refit, n_samples=n_samples, method=method, total=total)


def _repeated(data: PyTree, weight: Any) -> PyTree:
    """Every datum as often as its weight says."""
    if weight is None:
        return data
    counts = np.asarray(weight)
    if (counts != np.floor(counts)).any():
        raise ValueError("weight must hold whole numbers for method='parametric': it says how many data to draw")
    return jax.tree.map(lambda x: jnp.asarray(np.repeat(np.asarray(x), counts.astype(int), axis=0)), data)


def _check_sampler(model: Model, params: Params, data: PyTree) -> None:
    try:
        drawn = jax.eval_shape(model.sample_like, jax.random.key(0), params, data)
    except NotImplementedError:
        raise TypeError(f"model must have a sample for method='parametric'; {type(model).__name__} has none") from None
    shapes = [jax.tree.map(lambda x: x.shape, tree) for tree in (drawn, data)]
    if shapes[0] != shapes[1]:
        raise TypeError(f"model.sample_like must give data shaped {shapes[1]} for method='parametric'; got {shapes[0]}")


def _bootstrap(refit: Refit, *, n_samples: int, method: str, total: int) -> Bootstrap:
    model, data, weight, estimate = refit.model, refit.data, refit.weight, refit.numbers["init"]
    model, params, affine, lost = floored(model, data, weight), estimate, None, 0.0  # one floor for all refits
    structure = dict(refit.structure)
    if structure.get("standardize", True) and model.log_prior is None and not refit.regularizer.in_users_units:
        # Once for all refits, rather than by each for its own data.
        affine = unmixed(coordinates(model, data, weight, jnp), refit.regularizer)
    if affine is not None:
        lost = log_abs_det(model, data, affine, float_dtype(data))
        data = rescaled_data(data, affine)
        model, params = rescaled(model, params, affine)
    n, dtype = n_rows(data), float_dtype(data)
    side_by_side = n_samples if jax.default_backend() != "cpu" else min(n_samples, SIDE_BY_SIDE)
    block_size = structure.get("block_size")
    if block_size is None:
        width = rows_width(model, params, data, refit.labels, side_by_side)
        block_size = choose_block_size(n, width, dtype.itemsize, jax.default_backend())

    def one(i: Array) -> tuple[Params, Array, Array]:
        own = jax.random.fold_in(refit.key, i)
        rows, counts = data, jnp.ones((n,), dtype) if weight is None else weight
        if method == "parametric":
            rows = jax.tree.map(lambda x, like: x.astype(like.dtype), model.sample_like(own, params, data), data)
        else:
            counts = _exponential(own, weight, data) if method == "weighted" else _multinomial(own, weight, data, total)
        result = refit.fitted(
            model=model, data=rows, weight=counts, key=own, init=params, block_size=block_size, standardize=False
        )
        return result.params, result.status, result.loglik + (lost * counts).sum()

    refitted, status, loglik = _in_batches(one, n_samples, side_by_side)
    axes = component_axes(model, data)
    if axes is not None and model.posterior is not None:
        reference = model.posterior(params, data)
        # One after another: (B, N, K) posteriors at once would be B times the memory.
        refitted = jax.lax.map(lambda p: align(model, p, reference, data, axes), refitted)
    if affine is not None:
        refitted = jax.vmap(lambda p: refit.model.rescale_params(p, affine.inverted()))(refitted)
    if type(refit.model).canonical is not Model.canonical:
        estimate = refit.model.canonical(estimate)
        refitted = jax.vmap(lambda p: refit.model.canonical(p, estimate))(refitted)
    return Bootstrap(refitted, status, loglik, estimate, method)


_bootstrap_jit = jax.jit(_bootstrap, static_argnames=("n_samples", "method", "total"))


def _in_batches(refit: Callable[[Array], PyTree], n: int, width: int) -> PyTree:
    """`refit` of 0..n-1 under vmap, about `width` at a time; the last batch is filled with repeats."""
    n_batches = math.ceil(n / width)
    index = jnp.arange(n_batches * math.ceil(n / n_batches)) % n
    found = jax.lax.map(jax.vmap(refit), index.reshape(n_batches, -1))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:n], found)


def _multinomial(key: Array, weight: Array | None, data: PyTree, total: int) -> Array:
    """(N,) how often each datum is drawn among `total`, in proportion to `weight`."""
    n = n_rows(data)
    if weight is None:
        drawn = jax.random.randint(key, (total,), 0, n)
    else:
        reach = jnp.cumsum(weight)
        drawn = jnp.searchsorted(reach, reach[-1] * jax.random.uniform(key, (total,), weight.dtype), side="right")
    return jnp.zeros((n,), float_dtype(data)).at[drawn].add(1, mode="drop")


def _exponential(key: Array, weight: Array | None, data: PyTree) -> Array:
    """(N,) weights, uniform on the simplex times N; a datum seen w times gets the sum of its w weights, a gamma variate."""
    n, dtype = n_rows(data), float_dtype(data)
    if weight is None:
        draws = jax.random.exponential(key, (n,), dtype)
        return draws * (n / draws.sum())
    draws = jnp.where(weight > 0, jax.random.gamma(key, jnp.where(weight > 0, weight, 1), dtype=dtype), 0)
    return draws * (weight.sum() / draws.sum())
