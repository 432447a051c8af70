"""How much unlabelled data should count, chosen by cross-validation on the labelled (Nigam et al. 2000, section 5.3)."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.data.sequences import label_shape
from jaxem.data.validation import check_positive_int, is_traced, numeric
from jaxem.evaluate.refit import Refit, refit_of
from jaxem.fitting.checks import check_rows_finite, valid_for_fit
from jaxem.fitting.fit import fit
from jaxem.model import Model
from jaxem.numerics.logs import most_probable
from jaxem.pytree import PyTree, struct
from jaxem.types import Result


@struct
class UnlabelledWeight:
    """Outcome of `unlabelled_weight`; C candidates.

    Attributes:
        candidates: (C,) weights of an unlabelled datum, a labelled one counting as one.
        accuracy: (C,) share of held-out labelled data predicted right.
        loglik: (C,) mean log-probability of held-out labels.
        chosen: the candidate of the best accuracy; of equal ones that of the best `loglik`.
        result: the fit to all data at that weight.
    """

    candidates: Array
    accuracy: Array
    loglik: Array
    chosen: Array
    result: Result


def fit_labelled(model: Model, data: PyTree, labels: Any, weight: Array | float, **options: Any) -> Result:
    """EM from the estimate that the labelled data give by themselves, unlabelled ones counting `weight` each.

    Pure: works under jit and vmap, over weights too. At weight 0 it is the supervised estimate.

    Args:
        model: a mixture, or any model with labels and a `start` from responsibilities.
        data: N data.
        labels: (N,) component of each, -1 for unknown.
        weight: of an unlabelled datum.
        **options: for `fit`.
    """
    if not is_traced(model, data, labels, weight):
        data, labels = valid_for_fit(model, data), numeric(labels, "labels")
    data, labels = jax.tree.map(jnp.asarray, data), jnp.asarray(labels)
    known = labels >= 0
    responsibilities = jax.nn.one_hot(labels, model.n_labels or 0, dtype=jnp.zeros(()).dtype)
    alone = known.astype(responsibilities.dtype)
    start = model.start(responsibilities, data, alone, smooth=True)  # type: ignore[attr-defined]
    supervised = fit(model, data, init=start, weight=alone, labels=labels, **options)
    return fit(model, data, init=supervised, weight=jnp.where(known, 1, weight), labels=labels, **options)


def unlabelled_weight(
    model: Model,
    data: PyTree,
    labels: Any,
    *,
    key: Array,
    candidates: Any = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0),
    n_folds: int = 5,
    **options: Any,
) -> UnlabelledWeight:
    """Choose the weight of unlabelled data; all candidates and folds are one vmap of `fit`.

    Where the components that the data suggest are not the classes, unlabelled data mislead, and small weights win.

    Args:
        model: a mixture; component k is class k.
        data: N data.
        labels: (N,) classes, -1 for unknown.
        key: deals the labelled data out to folds.
        candidates: (C,) weights to try.
        n_folds: F; each fold hides about one in F labels of each class.
        **options: for `fit`.

    Raises:
        ValueError: for labels or candidates that do not fit, or a class with fewer than two labelled data.
    """
    data = valid_for_fit(model, data)
    check_rows_finite(model, data)
    n_folds = check_positive_int(n_folds, "n_folds", 2)
    labels, weights = numeric(labels, "labels"), np.asarray(candidates, float)
    if labels.shape != label_shape(data) or labels.dtype.kind not in "iu":
        raise ValueError(f"labels must be integers of shape {label_shape(data)}; got {labels.dtype} {labels.shape}")
    if weights.ndim != 1 or not weights.size or not (weights >= 0).all():
        raise ValueError(f"candidates must be a list of non-negative weights; got {candidates}")
    counts = np.bincount(labels[labels >= 0], minlength=model.n_labels or 0)
    if len(counts) != model.n_labels or (counts < 2).any():
        raise ValueError(f"labels must name each of the {model.n_labels} classes at least twice; got counts {counts}")
    fold = np.full(len(labels), -1)
    order = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel()).permutation(len(labels))
    for k in range(len(counts)):
        own = order[labels[order] == k]
        fold[own] = np.arange(len(own)) % n_folds
    data = jax.tree.map(jnp.asarray, data)
    tried = jnp.asarray(weights, jnp.zeros(()).dtype)
    refit = refit_of(model, data, weight=None, labels=labels, key=None, **options)
    accuracy, loglik = _held_out(refit, jnp.asarray(fold), tried, n_folds=n_folds)
    chosen = tried[jnp.lexsort((-loglik, -accuracy))[0]]
    return UnlabelledWeight(tried, accuracy, loglik, chosen, _refit(refit, chosen))


@jax.jit
def _refit(refit: Refit, weight: Array) -> Result:
    return refit.fitted(fit_labelled, weight=weight)


@partial(jax.jit, static_argnames="n_folds")
def _held_out(refit: Refit, fold: Array, weights: Array, *, n_folds: int) -> tuple[Array, Array]:
    labels = refit.labels

    def one(weight: Array, f: Array) -> tuple[Array, Array]:
        hidden = fold == f
        seen = jnp.where(hidden, -1, labels)
        # A hidden label leaves an unlabelled datum, as it would be when it comes to be predicted.
        result = refit.fitted(fit_labelled, labels=seen, weight=weight)
        share = refit.model.posterior(result.params, refit.data)
        right = most_probable(share) == labels
        tiny = jnp.finfo(share.dtype).tiny
        own = jnp.log(jnp.maximum(jnp.take_along_axis(jnp.nan_to_num(share), jnp.maximum(labels, 0)[:, None], 1)[:, 0], tiny))
        return jnp.where(hidden, right, 0).sum(), jnp.where(hidden, own, 0).sum()

    right, own = jax.vmap(jax.vmap(one, (None, 0)), (0, None))(weights, jnp.arange(n_folds))
    n = (labels >= 0).sum()
    return right.sum(1) / n, own.sum(1) / n
