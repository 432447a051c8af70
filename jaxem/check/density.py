"""Laws of the density: finite, normalised, convex in the natural parameters, the same in every variant and coordinate."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem import constraints as sets
from jaxem.check.case import ROUNDING, Case, Expected, chart, log_prob, q_of, quick_jit, row_gradients, rows_log_prob
from jaxem.check.report import Skip, compare, law, require
from jaxem.engine.m_step import log_prior
from jaxem.model import Model
from jaxem.types import Rows

#: Standard errors allowed of each coordinate of the mean score: by chance once in two million.
Z_BOUND = 5.0


@law("finite-gradients")
def finite_gradients(case: Case) -> None:
    """log_prob and its gradient in free coordinates are finite on every row."""
    value, gradient = row_gradients(case.model, case.params, case.data, case.local)
    for what, x in (("log_prob", value), ("the gradient of log_prob", gradient)):
        bad = np.flatnonzero(~np.isfinite(np.asarray(x)).reshape(case.n, -1).all(1))
        require(not bad.size, f"{what} must be finite; got NaN or inf in {bad.size} row(s), the first {bad[:1]}")


@law("free-round-trip")
def free_round_trip(case: Case) -> None:
    """Parameters lie in their constraints, and to_free and from_free undo each other."""
    try:
        sets.check(case.model.constraints, case.params, "from_free")
    except ValueError as error:
        require(False, str(error))
    vector, back = chart(case.model, case.params)
    there = back(vector)
    size = jax.tree.map(lambda x: ROUNDING * case.eps * float(np.max(np.abs(x), initial=0)), case.params)
    compare(there, case.params, size, "from_free(to_free(params))")
    again, _ = chart(case.model, there)
    finite = jnp.isfinite(vector)
    bound = ROUNDING * case.eps * (1 + float(jnp.abs(jnp.where(finite, vector, 0)).max(initial=0)))
    compare(jnp.where(finite, again, 0), jnp.where(finite, vector, 0), bound, "to_free(from_free(free))")


@law("posterior-rows-sum-to-one")
def posterior_rows(case: Case) -> None:
    """Posterior probabilities are non-negative and sum to one along the last axis."""
    if case.model.posterior is None:
        raise Skip("the model has no posterior")
    posterior = _posterior(case.model, case.params, case.data)
    if not isinstance(posterior, jax.Array):
        raise Skip("its posterior is not one array of probabilities")
    p = np.asarray(posterior, np.float64)
    require(p.shape[0] == case.n, f"posterior must lead with N={case.n}; got shape {p.shape}")
    require((p >= 0).all(), f"posterior must be non-negative; got a least entry of {p.min()}")
    total = p.sum(-1)
    if p.ndim > 2:  # padded positions of a sequence may hold zeros, but not a whole datum
        empty = (p == 0).all(tuple(range(1, p.ndim)))
        total = np.where((total == 0) & ~empty.reshape(-1, *[1] * (p.ndim - 2)), 1, total)
    compare(total, np.ones_like(total), ROUNDING * case.eps, "sum of posterior rows")


@quick_jit
def _posterior(model, params, data):
    return model.posterior(params, data)


@law("variants-agree")
def variants_agree(case: Case) -> None:
    """`centered` and `variants` change the arithmetic, never the law."""
    model = case.model
    about = model.centered(case.params)
    which, variants = about.variants(case.params)
    elsewhere = model.centered(case.start)
    if len(variants) == 1 and _same(about, model) and _same(elsewhere, model):
        raise Skip("the model has one variant")
    reference = rows_log_prob(model, case.params, case.params, case.data, case.local)
    scores = model.scores(case.params, case.data) if model.scores else None
    rows = Rows(local=case.local, scores=scores)
    # Scores are sums of terms that may be 100 times the result, and cancel.
    bound = 10 * ROUNDING * case.eps * (1 + float(jnp.abs(reference).max()))
    # Cheaper variants than `which` are not claimed to be accurate here.
    others = {f"variant {i}": variant for i, variant in enumerate(variants) if i >= int(which)}
    others |= {"the model about other parameters": model.exact(case.start), "the model as given": model}
    for name, other in others.items():
        got = other.log_marginal(other.pack(other.natural(case.params)), case.data, rows)
        compare(got, reference, bound, f"log_marginal of {name}")


def _same(one, other) -> bool:
    """Whether two models hold the very same leaves."""
    (leaves, structure), (others, other_structure) = jax.tree.flatten(one), jax.tree.flatten(other)
    return structure == other_structure and all(x is y for x, y in zip(leaves, others, strict=True))


@law("change-of-coordinates")
def change_of_coordinates(case: Case) -> None:
    """In the coordinates of the computation densities differ by `log_abs_det`, log-priors by a constant."""
    if case.affine is None:
        raise Skip("the model offers no coordinates")
    inside = np.asarray(log_prob(case.model, case.params, case.data), np.float64)
    outside = log_prob(case.original, case.original_params, case.original_data)
    lost = np.asarray(case.model.log_abs_det(case.data, case.affine), np.float64)
    # Uncentred data lose as many digits as their offset is larger than their spread.
    offset = float(np.abs(np.asarray(case.affine.shift)).max(initial=0) / np.abs(np.asarray(case.affine.inverse)).max())
    bound = ROUNDING * case.eps * (1 + np.abs(inside).max()) * (1 + offset) ** 2
    compare(outside, inside + lost, bound, "log_prob in the data's own units")
    back = jax.tree.map(lambda x: np.asarray(x, np.float64), case.affine).inverted()
    moved = case.nearby(case.params, 0.3)
    moved_original = jax.tree.map(
        lambda x: jnp.asarray(x, case.dtype), case.model.rescale_params(jax.tree.map(np.asarray, moved), back)
    )
    prior = [float(log_prior(case.model, p)) for p in (case.params, moved)]
    own = [float(log_prior(case.original, p)) for p in (case.original_params, moved_original)]
    bound = 10 * ROUNDING * case.eps * (1 + np.abs([*prior, *own]).max()) * (1 + offset) ** 2
    compare(own[1] - own[0], prior[1] - prior[0], bound, "change of the log-prior")


@law("minorisation")
def minorisation(case: Case) -> None:
    """l(theta') - l(theta) >= q(theta') - q(theta): what EM is. It fails where l is not convex in `natural`."""
    vector, _ = chart(case.model, case.params)
    # From steps whose second-order terms are seen alone to steps that leave the neighbourhood.
    steps = jnp.asarray(case.rng.normal(size=(24, vector.size)), vector.dtype)
    steps = steps * jnp.geomspace(0.01, 0.5, 24, dtype=vector.dtype)[:, None]
    steps = jnp.where(jnp.isfinite(vector), steps, 0)
    loglik, q, size = _rises(case.model, case.expected, steps)
    gap = np.asarray(loglik, np.float64) - np.asarray(q, np.float64)
    # Rounding of two sums of n terms, with the terms of a row's score up to 10 times the score.
    bound = 100 * case.eps * float(size)
    worst = int(np.argmin(np.where(np.isnan(gap), -np.inf, gap)))
    require(
        gap[worst] >= -bound,
        f"the objective must rise by at least what q rises by; at a nearby point it rises by {float(loglik[worst]):.9g}"
        f" and q by {float(q[worst]):.9g}; they may differ by {bound:.2g}. Either the complete-data log-density is not"
        " linear in `natural`, or the statistics are not posterior expectations (hard assignments)",
    )


@quick_jit
def _rises(model: Model, at: Expected, steps: Array) -> tuple[Array, Array, Array]:
    """(S,) rises of the objective and of q after each step in free coordinates, and the size of what is summed."""
    params, data, weight, _, local = at
    vector, back = chart(model, params)
    q = q_of(model, at)

    def objective(theta):
        return weight @ rows_log_prob(model, params, theta, data, local) + log_prior(model, theta)

    def rise(step):
        theta = back(vector + step)
        return objective(theta) - objective(back(vector)), q(theta) - q(back(vector))

    size = weight @ (1 + jnp.abs(rows_log_prob(model, params, params, data, local))) + jnp.abs(q(params))
    return *jax.vmap(rise)(steps), size


@law("mean-score")
def mean_score(case: Case) -> None:
    """The gradient of log_prob has mean zero on data from the model: what normalisation says."""
    if case.model.is_bound:
        raise Skip("log_marginal is a bound")
    gradient, n = case.drawn, len(case.drawn)
    rounding = ROUNDING * case.eps * np.abs(gradient).max(0, initial=1)
    z = gradient.mean(0) / (gradient.std(0) / np.sqrt(n) + rounding)
    require(
        (np.abs(z) <= Z_BOUND).all(),
        f"the mean score of {n} sampled data must be within {Z_BOUND} standard errors of zero; got"
        f" {np.array2string(z, precision=2, threshold=30)}: a log-normaliser is missing or wrong, or sample is",
    )
