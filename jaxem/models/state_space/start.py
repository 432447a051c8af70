"""Where EM of a state space model starts: principal components of the data, or the scale of their steps."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.models.state_space.series import Series
from jaxem.numerics.linalg import PRECISION, cholesky, inverse_lower, least_squares, transpose
from jaxem.numerics.logs import divided
from jaxem.types import Params

#: Rounds of the subspace iteration: a start needs no more.
ROUNDS = 30


def principal(second: Array, k: int) -> Array:
    """(D, k) leading principal directions of a second-moment matrix, each as long as the data are wide along it."""
    d, size = len(second), jnp.trace(second)
    second = second + jnp.finfo(second.dtype).eps * jnp.where(size > 0, size, 1) * jnp.eye(d, dtype=second.dtype)

    def turn(_: int, basis: Array) -> Array:
        moved = jnp.matmul(second, basis, precision=PRECISION)
        moved = moved / jnp.sqrt(jnp.square(moved).sum(0))
        return jnp.matmul(moved, transpose(inverse_lower(cholesky(moved.T @ moved))), precision=PRECISION)

    start = jax.random.normal(jax.random.key(0), (d, k), second.dtype)
    basis = jax.lax.fori_loop(0, ROUNDS, turn, start)
    return basis * jnp.sqrt(jnp.maximum((basis * jnp.matmul(second, basis, precision=PRECISION)).sum(0), 0))


def start(key: Array | None, series: Series, weight: Array, template: Params, fixed: dict[str, Any]) -> Params:
    """Starting parameters before what is known is put in.

    What inputs explain is taken from the data first, by least squares. A free observation matrix gets principal
    components of the rest about its mean, for states of unit variance that forget at different speeds. A known one gets
    states whose steps, and noise, explain the steps of the data in equal parts.

    Args:
        key: random key, or None: no random part.
        series: the data.
        weight: (B,).
        template: parameters that know nothing but what is known.
        fixed: the model's known entries.
    """
    d, k = template["observation"].shape
    seen = series.seen * weight[:, None, None]
    both = seen[:, 1:] * series.seen[:, :-1]
    y, from_inputs = _without_inputs(series, seen, template, fixed)
    steps = divided((both * jnp.square(jnp.diff(y, axis=1))).sum((0, 1)), both.sum((0, 1)))
    center = divided((seen * y).sum((0, 1)), seen.sum((0, 1)))
    scaled = jnp.sqrt(weight)[:, None, None] * jnp.where(series.seen, y - center, 0)
    pairs = jnp.einsum("btd,bte->de", seen, series.seen.astype(seen.dtype), precision=PRECISION)
    second = divided(jnp.einsum("btd,bte->de", scaled, scaled, precision=PRECISION), pairs)
    size = jnp.diagonal(second)
    steps = jnp.where(steps > 0, steps, jnp.where(size > 0, size, 1)) / 3
    draws = jnp.zeros((3, d + k, d + k), steps.dtype)
    if key is not None:
        draws = jax.random.normal(key, draws.shape, draws.dtype)

    speed = 0.9 ** (1 + 2 * jnp.arange(k, dtype=steps.dtype))
    structural = "observation" in fixed and not np.ndim(fixed["observation"])
    known = template["observation"]
    if "observation" in fixed:
        entries = jnp.broadcast_to(jnp.asarray(fixed["observation"], steps.dtype), known.shape)
        structural = ~jnp.isnan(entries).any()
    wide = principal(second, min(d, k))
    loadings = jnp.concatenate([wide] + [0.3 * wide] * (k // d), 1)[:, :k]
    loadings = loadings * (1 + 0.5 * draws[0, :d, :k])
    observation = jnp.where(structural, known, loadings)
    reach = jnp.maximum(jnp.square(known).sum() / d, 1e-6)
    spread = jnp.where(structural, steps.mean() / reach, 1 - jnp.square(speed)) * jnp.exp(0.5 * draws[1, 0, :k])
    noise = steps * jnp.exp(0.5 * draws[1, 1, :d])
    shape = lambda name, x: jnp.diag(x) if template[name].ndim == 2 else x  # noqa: E731
    out = {
        **template,
        **from_inputs,
        "transition": jnp.diag(speed) + 0.1 * draws[2, :k, :k],
        "state_noise": shape("state_noise", spread),
        "observation": observation,
        "observation_noise": shape("observation_noise", noise),
    }
    if "initial_mean" in template:
        first = divided((seen[:, 0] * y[:, 0]).sum(0), seen[:, 0].sum(0))
        gram = jnp.matmul(observation.T, observation, precision=PRECISION)
        out["initial_mean"] = least_squares(gram, observation.T @ first)
        out["initial_covariance"] = jnp.diag(jnp.broadcast_to(jnp.where(structural, 10 * spread, 1), (k,)))
    return out


def _without_inputs(series: Series, seen: Array, template: Params, fixed: dict[str, Any]) -> tuple[Array, Params]:
    """(B, T, D) the data less what inputs explain, where they act on observations, and the coefficients of that."""
    if "observation_input" not in template:
        return series.y, {}
    total = partial(jnp.einsum, precision=PRECISION)
    gram = total("btd,btp,btq->dpq", seen, series.inputs, series.inputs)
    cross = total("btd,btd,btp->dp", seen, series.y, series.inputs)
    matrix = least_squares(gram, cross)
    known = fixed.get("observation_input")
    if known is not None:
        matrix = jnp.where(jnp.isnan(jnp.asarray(known, matrix.dtype)), matrix, known)
    return series.y - jnp.matmul(series.inputs, matrix.T, precision=PRECISION), {"observation_input": matrix}
