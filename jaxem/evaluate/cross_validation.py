"""Cross-validation: folds are 0/1 weights, and all of them are one vmap of `fit`."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.data.validation import check_positive_int, check_weight
from jaxem.evaluate.refit import Refit, refit_of
from jaxem.fitting.checks import check_rows_finite, valid_for_fit
from jaxem.model import Model
from jaxem.numerics.blocks import n_rows
from jaxem.pytree import PyTree, struct
from jaxem.types import Params, Result


@struct
class CrossValidation:
    """Held-out log-likelihoods; F is the number of folds.

    Attributes:
        loglik: (F,) log-likelihood of each fold under the parameters fitted to the others.
        n_held_out: (F,) data in each fold, or the sum of their weights.
        fold: (N,) int32, the fold of each datum.
        params: fitted parameters, leaves (F, ...).
        status: (F,) int32 `Status` of each fit.
    """

    loglik: Array
    n_held_out: Array
    fold: Array
    params: Params
    status: Array

    @property
    def mean(self) -> Array:
        """Held-out log-likelihood of one datum, over all folds. Higher is better."""
        return self.loglik.sum() / self.n_held_out.sum()


def cross_validate(
    model: Model,
    data: PyTree,
    *,
    key: Array,
    n_folds: int = 5,
    weight: Any = None,
    **options: Any,
) -> CrossValidation:
    """Fit to all folds but one, price the one left out, for each in turn.

    Args:
        model: the model.
        data: the data.
        key: JAX random key; it deals the data into folds, and every fold is fitted with it as it stands.
        n_folds: F, from 2 to N; folds differ in size by one at most.
        weight: (N,) non-negative; 0 is absent, 2 is twice.
        **options: of `jaxem.fit`: n_restarts, stop, init, ...

    Returns:
        A `CrossValidation`. Fold f equals `fit(model, data, key=key, weight=weight * (fold != f), ...)`.

    Raises:
        ValueError: for fewer than 2 or more than N folds, and whatever the model or the weights refuse.
    """
    data = valid_for_fit(model, data)
    n = n_rows(data)
    if key is None:
        raise ValueError("key must be a JAX random key, e.g. jax.random.key(0), to deal the data into folds; got None")
    n_folds = check_positive_int(n_folds, "n_folds", 2)
    if n_folds > n:
        raise ValueError(f"n_folds must be at most N={n}; got {n_folds}")
    weight = np.ones(n) if weight is None else check_weight(weight, n)
    check_rows_finite(model, data, weight)
    data = jax.tree.map(jnp.asarray, data)
    return _cross_validate(refit_of(model, data, weight=weight, key=key, **options), n_folds=n_folds)


@partial(jax.jit, static_argnames="n_folds")
def _cross_validate(refit: Refit, *, n_folds: int) -> CrossValidation:
    model, data, weight, key = refit.model, refit.data, refit.weight, refit.key
    n = weight.shape[0]
    # A key that no restart uses: restart i has fold_in(key, i).
    fold = jax.random.permutation(jax.random.fold_in(key, 2**31 - 1), jnp.arange(n, dtype=jnp.int32) % n_folds)
    held_out = (fold == jnp.arange(n_folds)[:, None]) * weight

    def one(held: Array) -> Result:
        return refit.fitted(weight=weight - held)

    results = jax.vmap(one)(held_out)

    def price(of: tuple[Params, Array]) -> Array:
        params, held = of
        return jnp.where(held > 0, held * model.log_prob(params, data), 0).sum()

    # One fold after another: the (K, N) scores of all folds at once would be F times the memory.
    loglik = jax.lax.map(price, (results.params, held_out))
    return CrossValidation(loglik, held_out.sum(1), fold, results.params, results.status)
