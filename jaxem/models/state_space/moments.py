"""What a state space model makes of its data: evidence on the states, and the expected moments of its linear systems."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from jaxem.latents.gaussian_chain import GaussianChain, mul
from jaxem.latents.kalman import Smoothed
from jaxem.models.state_space.linear_gaussian import LinearGaussian, System
from jaxem.models.state_space.series import Series
from jaxem.numerics.linalg import PRECISION, cholesky, eye_like, inverse_lower, transpose
from jaxem.pytree import PyTree


def whitener(noise: Array, seen: Array) -> tuple[Callable[[Array], Array], Array]:
    """What gives (n, T, D, M) unit noise where seen, zeros elsewhere; and (n,) log |noise of the seen| / 2."""
    pair = seen[..., :, None] & seen[..., None, :]
    lower = cholesky(jnp.where(pair, noise, eye_like(noise)))
    inverse = jnp.where(pair, inverse_lower(lower), 0)
    return lambda x: mul(inverse, x), jnp.log(jnp.diagonal(lower, axis1=-2, axis2=-1)).sum((1, 2))


def imputer(noise: Array, seen: Array) -> tuple[Array, Array]:
    """(n, T, D, D) what the residuals of seen entries make of all, and the covariance that is left of the others."""
    white, _ = whitener(noise, seen)
    inverse = white(jnp.broadcast_to(eye_like(noise), (*seen.shape, len(noise))))
    share = mul(noise, transpose(inverse), inverse)
    left = noise - mul(share, noise)
    either = seen[..., :, None] | seen[..., None, :]
    return share, jnp.where(either, 0, (left + transpose(left)) / 2)


def observed_chain(found: dict[str, System], series: Series) -> tuple[GaussianChain, Array]:
    """The chain of states with what the data say of each, and (n,) minus the log-normalisers of what is seen."""
    first, state, observation = found.get("initial"), found["state"], found["observation"]
    k = len(state.matrix)
    residual = series.y - mul(series.inputs, observation.matrix[:, k:].T)
    rows = jnp.broadcast_to(observation.matrix[:, :k], (*series.y.shape, k))
    log_scale = math.log(2 * math.pi) / 2 * series.seen.sum((1, 2)).astype(series.y.dtype)
    if observation.noise.ndim == 1:
        rows, target = jnp.where(series.seen[..., None], rows, 0), jnp.where(series.seen, residual, 0)
        variance = jnp.where(series.seen, observation.noise, 1)
    else:
        white, log_det = whitener(observation.noise, series.seen)
        rows, target, variance = white(rows), white(residual[..., None])[..., 0], None
        log_scale = log_scale + log_det
    chain = GaussianChain(
        mean=None if first is None else first.matrix[:, 0],
        covariance=None if first is None else first.noise,
        transition=state.matrix[:, :k],
        shift=mul(series.inputs, state.matrix[:, k:].T),
        noise=jnp.diag(state.noise) if state.noise.ndim == 1 else state.noise,
        rows=rows,
        target=target,
        variance=variance,
    )
    return chain, -log_scale


def _counted(part_is_diagonal: bool, steps: Array, seen: Array) -> Array:
    """(n, T, D) weights of single entries where rows have statistics of their own, else (n, T) of steps."""
    return steps[..., None] * seen if part_is_diagonal else steps


def tilts(found: dict[str, System], series: Series) -> tuple[Array, Array, Array]:
    """What the systems' tilts are as evidence: (n, T, K, K), (n, T, K) and (n,), all zero in value."""
    k, valid = len(found["state"].matrix), series.valid.astype(series.y.dtype)

    def of(system: System, steps: Array, seen: Array, inputs: Array) -> tuple[Array, Array, Array]:
        tilt, log_tilt = jnp.asarray(system.tilt), jnp.asarray(system.log_tilt)
        counted = _counted(tilt.ndim == 3, steps, seen)
        if tilt.ndim == 3:
            each, log_tilt = jnp.einsum("btd,dvw->btvw", counted, tilt, precision=PRECISION), mul(counted, log_tilt)
        else:
            each, log_tilt = counted[..., None, None] * tilt, counted * log_tilt
        from_inputs = mul(each[..., k:], inputs[..., None])[..., 0]
        return -2 * each[..., :k, :k], 2 * from_inputs[..., :k], (from_inputs[..., k:] * inputs).sum(-1) + log_tilt

    here = of(found["observation"], valid, series.seen, series.inputs)
    # The tilt of a transition is evidence on the state that it leaves.
    moves = of(found["state"], valid[:, 1:], jnp.ones((1, 1, k), bool), series.inputs[:, 1:])
    onward = (jnp.pad(x, [(0, 0), (0, 1)] + [(0, 0)] * (x.ndim - 2)) for x in moves)
    tilt, lean, constant = (a + b for a, b in zip(here, onward))
    more = constant.sum(1)
    if "initial" in found:
        more = more + jnp.asarray(found["initial"].tilt)[0, 0] + found["initial"].log_tilt
    return tilt, lean, more


def statistics(
    parts: dict[str, LinearGaussian], given: dict[str, System], smoothed: Smoothed, series: Series, weight: Array
) -> PyTree:
    """Expected statistics of each linear system about its current matrix, shaped like the natural parameters.

    Args:
        parts: the linear systems.
        given: their current matrices and noises.
        smoothed: the states.
        series: the data.
        weight: (n,).
    """
    mean, covariance, inputs = smoothed.mean, smoothed.covariance, series.inputs
    steps, k = weight[:, None] * series.valid, mean.shape[-1]
    wide = [(0, 0)] * 3 + [(0, inputs.shape[-1])]
    spread = jnp.pad(covariance, [(0, 0), (0, 0), wide[-1], wide[-1]])

    move = jnp.concatenate([mean[:, :-1], inputs[:, 1:]], -1)
    counted = _counted(parts["state"].diagonal, steps[:, 1:], jnp.ones((1, 1, k), bool))
    cross, noise = jnp.pad(smoothed.step_cross, wide), smoothed.step_covariance
    stats = {"state": parts["state"].statistics(counted, smoothed.step_mean, move, noise, cross, spread[:, :-1])}

    observation, z = given["observation"], jnp.concatenate([mean, inputs], -1)
    residual = jnp.where(series.seen, series.y - mul(z, observation.matrix.T), 0)
    cross = -mul(observation.matrix[:, :k], covariance)
    noise = -mul(cross, observation.matrix[:, :k].T)
    if not parts["observation"].diagonal:  # missing entries are imputed
        share, left = imputer(observation.noise, series.seen)
        residual, cross = mul(share, residual[..., None])[..., 0], mul(share, cross)
        noise = mul(share, noise, transpose(share)) + left
    counted = _counted(parts["observation"].diagonal, steps, series.seen)
    stats["observation"] = parts["observation"].statistics(counted, residual, z, noise, jnp.pad(cross, wide), spread)

    if "initial" in parts:
        one, nothing = jnp.ones_like(weight)[:, None, None], jnp.zeros_like(covariance[:, :1, :, :1])
        away = mean[:, :1] - given["initial"].matrix[:, 0]
        stats["initial"] = parts["initial"].statistics(
            weight[:, None], away, one, covariance[:, :1], nothing, nothing[:, :, :1]
        )
    return stats
