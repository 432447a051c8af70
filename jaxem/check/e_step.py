"""Laws of the E-step: the identities of Fisher and Louis, per-datum parameters, single precision."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.check.case import (
    ROUNDING,
    Case,
    Expected,
    chart,
    derived_expectation,
    first_local,
    log_prob,
    one_block,
    quick_jit,
    row_gradients,
    rows_log_prob,
    whole_expectation,
)  # fmt: skip
from jaxem.check.report import Skip, compare, law, require
from jaxem.engine.e_step import weighted_total
from jaxem.engine.m_step import expected_scores, with_pseudo
from jaxem.evaluate.curvature import Curvature
from jaxem.model import Model
from jaxem.numerics.blocks import n_rows
from jaxem.numerics.trees import cast, inner

DERIVED = "the E-step is derived: the chain rule makes it so, and it would prove nothing"


@law("fisher")
def fisher(case: Case) -> None:
    """<stats, d natural> of a hand-written E-step is the gradient of the log-likelihood in free coordinates."""
    if case.model.e_step is None:
        raise Skip(DERIVED)
    _, gradient = row_gradients(case.model, case.params, case.data, case.local)
    gradient, weight = np.asarray(gradient, np.float64), np.asarray(case.weight, np.float64)
    pulled = _pulled(case.model, case.expected)
    # The pulled gradient cancels terms as large as statistics times derivatives of `natural`.
    bound = ROUNDING * case.eps * (weight @ np.abs(gradient) + weight.sum()).max()
    compare(pulled, weight @ gradient, bound, "<stats, d natural>, the gradient by Fisher's identity")


@quick_jit
def _pulled(model: Model, at: Expected) -> Array:
    """(P,) <stats, d natural> in free coordinates."""
    params, data, weight, stats, local = at
    about = model.centered(params)
    vector, back = chart(model, params)
    blocked = jax.tree.map(lambda x: x[None], local)
    scores = expected_scores(about, params, one_block(data, weight), blocked) if model.scores else None

    def q(v):
        value = inner(stats, about.natural(back(v)))
        return value + scores(back(v)) if scores else value

    return jax.grad(q)(vector)


@law("e-step-matches-derived")
def matches_derived(case: Case) -> None:
    """A hand-written E-step equals the derived one in all it returns."""
    if case.model.e_step is None:
        raise Skip("the E-step is derived")
    wanted = derived_expectation(case.model, case.params, case.data, case.weight, case.local)
    compare(case.e, wanted, case.bound(case.weight), "(loglik, stats) of e_step: ")


@law("loglik-is-sum-of-log-prob")
def loglik_is_sum(case: Case) -> None:
    """The log-likelihood of an E-step is the weighted sum of log_prob."""
    if case.model.local is not None:
        raise Skip("the E-step takes local where it stands, log_prob from a cold start")
    own = np.asarray(log_prob(case.model, case.params, case.data), np.float64)
    require(own.shape == (case.n,), f"log_prob must have shape ({case.n},); got {own.shape}")
    bound = jax.tree.leaves(case.bound(case.weight))[0]
    compare(case.e[0], np.asarray(case.weight, np.float64) @ own, bound, "log-likelihood of the E-step")


@law("local")
def local(case: Case) -> None:
    """Per-datum parameters lower no row, and are stationary: they add nothing to the total derivative."""
    model = case.model
    if model.local is None:
        raise Skip("the model has no local")
    moved = case.nearby(case.params, 0.1)
    held, updated = _local_step(model, moved, case.data, case.local)
    held, updated = np.asarray(held, np.float64), np.asarray(updated, np.float64)
    fall = held - updated
    bound = ROUNDING * case.eps * (1 + np.abs(held))
    worst = int(np.argmax(fall - bound))
    require(
        (fall <= bound).all(),
        f"no row may fall when local is updated; row {worst} falls from {held[worst]:.9g} to {updated[worst]:.9g}",
    )
    # Converged per-datum parameters, so that only what is wrong, not what is unfinished, is seen.
    settled = _settled(model, case.params, case.data, case.local)
    vector, _ = chart(model, case.params)
    direction = jnp.asarray(case.rng.normal(size=vector.shape), vector.dtype)
    h = case.eps ** (1 / 3)
    up, down, expected = _total_derivative(model, case.params, case.data, case.weight, settled, direction=direction, h=h)
    size = float(case.weight.sum()) + float(jnp.abs(up))
    found, expected = float(up - down) / (2 * h), float(expected)
    # The finite difference has errors of size eps / h and h^2; the inner loop's own tolerance is at least 1e-3.
    bound = 1e-3 * (abs(expected) + float(case.weight.sum())) + 10 * case.eps / h * size
    require(
        abs(found - expected) <= bound,
        f"the total derivative of the objective must equal the one with local held ({expected:.6g}); got {found:.6g},"
        f" they may differ by {bound:.2g}: local does not maximise log_marginal row by row",
    )


@quick_jit
def _local_step(model, params, data, previous):
    safe = model.exact(params)
    new = model.local(safe.pack(safe.natural(params)), data, previous)
    return rows_log_prob(model, params, params, data, previous), rows_log_prob(model, params, params, data, new)


def _updated(model: Model, about, params, data, previous, times: int):
    safe = model.exact(about)
    packed = safe.pack(safe.natural(params))
    return jax.lax.fori_loop(0, times, lambda _, value: model.local(packed, data, value), previous)


@quick_jit
def _settled(model, params, data, previous):
    """Local parameters updated until they stand still: an inner loop may rest on a plateau for long."""
    safe = model.exact(params)
    packed = safe.pack(safe.natural(params))

    def moving(carry):
        _, change, step = carry
        return (change > jnp.finfo(change.dtype).eps ** 0.75) & (step < 5_000)

    def update(carry):
        old, _, step = carry
        new = model.local(packed, data, old)
        moved = [
            jnp.max(jnp.abs(n - o) / (1 + jnp.abs(o))) for n, o in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True)
        ]
        return new, jnp.stack(moved).max(), step + 1

    start = jnp.full((), jnp.inf, jnp.result_type(*jax.tree.leaves(previous)))
    return jax.lax.while_loop(moving, update, (previous, start, 0))[0]


@quick_jit
def _total_derivative(model, params, data, weight, local, *, direction, h):
    vector, back = chart(model, params)
    total = lambda v, rows: weighted_total(rows_log_prob(model, params, back(v), data, rows), weight)  # noqa: E731
    moved = lambda v: total(v, _updated(model, params, back(v), data, local, 50))  # noqa: E731
    held = jax.grad(lambda v: total(v, local))(vector) @ direction
    return moved(vector + h * direction), moved(vector - h * direction), held


@law("louis")
def louis(case: Case) -> None:
    """Observed information = complete information - missing information, and the missing one is a covariance."""
    model = case.model
    if model.local is not None:
        raise Skip("the model has local: its curvature is that of a bound")
    count = case.needs_moderate_size()
    observed, complete, missing = (np.asarray(x, np.float64) for x in _information(model, case.params, case.data, case.weight))
    # Second derivatives of the same sums: one digit more is lost than in the first.
    bound = 10 * ROUNDING * case.eps * (np.abs(complete).max(initial=0) + float(case.weight.sum()))
    compare(observed, complete - missing, bound, "observed information against Louis' formula")
    least = float(np.linalg.eigvalsh((missing + missing.T) / 2)[0]) if count else 0.0
    require(
        least >= -bound,
        f"the missing information must be positive semidefinite, a covariance; got an eigenvalue of {least:.6g}:"
        " the complete-data log-density is not linear in `natural`",
    )


@quick_jit
def _information(model, params, data, weight):
    about = Curvature(model, params, one_block(data, weight))
    return about.observed(), about.complete(), about.missing()


@law("n-free-params")
def n_free_params(case: Case) -> None:
    """n_free_params is the rank of the map from free coordinates to log-densities."""
    model = case.model
    if model.is_bound:
        raise Skip("log_marginal is a bound")
    if case.eps > 1e-12:
        raise Skip("a numerical rank needs float64")
    if type(model).n_free_params is Model.n_free_params:
        raise Skip("the model has no n_free_params")
    count = case.needs_moderate_size()
    claimed = model.n_free_params(case.draws)
    jacobian = case.drawn
    norm = np.linalg.norm(jacobian, axis=0)
    values = np.linalg.svd(jacobian / np.where(norm > 0, norm, 1), compute_uv=False)
    # Columns of unit norm: true directions stand far above, rounding far below.
    rank = int((values > 1e-8 * values[0]).sum())
    require(
        claimed == rank,
        f"expected the rank of the Jacobian of log_prob in {count} free coordinates, {rank} (singular values"
        f" {np.array2string(values[max(0, rank - 2) : rank + 2], precision=3)} about the cut); got {claimed}",
    )


@law("dtype")
def dtype(case: Case) -> None:
    """float32 and float64 agree, and what goes in in one comes out in the same."""
    found = {}
    for name in ("float32", "float64"):
        integers = not any(jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(case.data))
        # Data without a floating dtype are computed with in JAX's default one.
        with jax.enable_x64(not integers or name == "float64"):
            wanted = jnp.dtype(name)
            as_numpy = jax.tree.map(np.asarray, (case.params, case.data, case.weight))
            params, data, weight = cast(as_numpy, wanted)
            model = cast(jax.tree.map(lambda x: np.asarray(x) if hasattr(x, "dtype") else x, case.model), wanted)
            outputs = _outputs(model, params, data, weight)
            for what, tree in outputs.items():
                for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                    floats = jnp.issubdtype(leaf.dtype, jnp.floating)
                    where = f"{what}{jax.tree_util.keystr(path)}"
                    require(not floats or leaf.dtype == wanted, f"{where} must be {name} for {name} data; got {leaf.dtype}")
            found[name] = jax.tree.map(lambda x: np.asarray(x, np.float64), outputs["e_step"])
    # Rounding of the data themselves comes on top of that of the sums.
    bound = case.bound(case.weight, 10 * ROUNDING * float(np.finfo(np.float32).eps) / case.eps)
    compare(found["float32"], found["float64"], bound, "(loglik, stats) in float32 against float64: ")


@quick_jit
def _outputs(model, params, data, weight):
    loglik, stats = whole_expectation(model, params, data, weight, n_rows(data))
    outputs = {"e_step": (loglik, stats), "log_prob": model.log_prob(params, data), "local": first_local(model, params, data)}
    about = model.centered(params)
    if about.m_step is not None:
        outputs["m_step"] = about.m_step(with_pseudo(about, stats, params), params)
    if model.posterior is not None:
        outputs["posterior"] = model.posterior(params, data)
    return outputs
