"""Kalman filter and smoother of a Gaussian chain, in covariances, one observation after another.

No variance is ever inverted but that of a single surprise, so that exact observations (variance zero) and singular
noise need no special case, and a missing one is an update by nothing (Durbin and Koopman 2012, section 6.4). A diffuse
first state has the covariance c I with c beyond all bounds: whatever follows is a series in 1 / c of which the first
terms are kept (Koopman 1997; Durbin and Koopman 2012, sections 5.2 to 5.4).

Axes: K states, n chains, T steps, D rows of evidence.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from jaxem.latents.gaussian_chain import GaussianChain, apply, dot, mul, over_time
from jaxem.numerics.linalg import eye_like, transpose
from jaxem.numerics.trees import pairwise_sum
from jaxem.pytree import struct


@struct
class Smoothed:
    """States given all evidence.

    Attributes:
        mean: (n, T, K).
        covariance: (n, T, K, K).
        step_mean: (n, T - 1, K) mean of the noise w_t = x_t - transition x_{t-1} - shift_t, from the second step on.
        step_cross: (n, T - 1, K, K) covariance of w_t and x_{t-1}.
        step_covariance: (n, T - 1, K, K) covariance of w_t.
        log_mass: (n,) log-likelihood of the evidence.
        wide: (n, T, K, K) what of a diffuse first state's infinite covariance is left: the covariance is c wide + covariance,
            c beyond all bounds; None where that was not asked for.
    """

    mean: Array
    covariance: Array
    step_mean: Array
    step_cross: Array
    step_covariance: Array
    log_mass: Array
    wide: Array | None = None


@struct
class Filtered:
    """States given the evidence up to now.

    Attributes:
        mean: (n, T, K).
        covariance: (n, T, K, K); infinite, and the mean NaN, where a diffuse state is not determined yet.
        log_mass: (n, T) log-likelihood of each step given those before, exact diffuse.
    """

    mean: Array
    covariance: Array
    log_mass: Array


@struct
class _State:
    """Mean (n, K) and covariance c wide + covariance (n, K, K) of a state; `wide` is None unless the chain is diffuse."""

    mean: Array
    covariance: Array
    wide: Array | None


@struct
class _Update:
    """One scalar observation: its row (n, K); its surprise over, and one over, its variance, to order 1, 1/c, 1/c^2."""

    row: Array
    surprise: Array
    inverse: tuple[Array, ...]
    gain: tuple[Array, ...]


@struct
class _Future:
    """What is to come says of a state x, by order in 1/c: its mean rises by P r, its covariance falls by P N P."""

    r: tuple[Array, ...]
    n: tuple[Array, ...]


def _outer(left: Array, right: Array) -> Array:
    return left[..., :, None] * right[..., None, :]


def _symmetric(matrix: Array) -> Array:
    return (matrix + transpose(matrix)) / 2


def _reduced(covariance: Array, gain: Array, row: Array) -> Array:
    kept = eye_like(covariance) - _outer(gain, row)
    return mul(kept, covariance, transpose(kept))


def _absorb(
    state: _State, row: Array, target: Array, variance: Array, unit: Array | None = None
) -> tuple[_State, _Update, Array]:
    """The state once it has met target = row x + Normal(0, variance), (n,) each, and the log-likelihood of that."""
    along, surprise = apply(state.covariance, row), target - dot(row, state.mean)
    spread = dot(row, along) + variance
    certain = spread <= 0
    inverse = jnp.where(certain, 0, 1 / jnp.where(certain, 1, spread))
    gain, log_mass = along * inverse[:, None], -(jnp.log(jnp.where(certain, 1, spread)) + surprise**2 * inverse) / 2
    # What is certain cannot surprise, but for rounding.
    rounding = jnp.sqrt(jnp.finfo(row.dtype).eps) * (jnp.abs(target) + dot(jnp.abs(row), jnp.abs(state.mean)))
    log_mass = jnp.where(certain & (jnp.abs(surprise) > rounding), -jnp.inf, log_mass)
    orders, gains, wide = (inverse,), (gain,), state.wide
    if wide is not None:
        far = apply(wide, row)
        wide_spread = dot(row, far)
        diffuse = wide_spread > jnp.sqrt(jnp.finfo(row.dtype).eps) * dot(row, row)
        safe = jnp.where(diffuse, wide_spread, 1)
        gain = jnp.where(diffuse[:, None], far / safe[:, None], gain)
        log_mass = jnp.where(diffuse, -jnp.log(safe) / 2 + (0 if unit is None else unit), log_mass)
        second = (along - gain * spread[:, None]) / safe[:, None]
        orders = (jnp.where(diffuse, 0, inverse), jnp.where(diffuse, 1 / safe, 0), jnp.where(diffuse, -spread / safe**2, 0))
        gains = (gain, jnp.where(diffuse[:, None], second, 0))
        wide = _reduced(wide, gain, row)
    # Joseph's form, in which nothing cancels.
    covariance = _reduced(state.covariance, gain, row) + variance[:, None, None] * _outer(gain, gain)
    new = _State(state.mean + gain * surprise[:, None], covariance, wide)
    return new, _Update(row, surprise, orders, gains), log_mass


def _filter(chain: GaussianChain) -> tuple[_State, _Update, Array]:
    """The states once they have met their evidence (n, T, ...), updates (n, T, D, ...), and (n, T) log-likelihoods."""
    n, _, k = chain.shift.shape
    square = jnp.broadcast_to(chain.noise, (n, k, k))
    if chain.mean is None or chain.covariance is None:
        first = _State(jnp.zeros((n, k), square.dtype), jnp.zeros_like(square), eye_like(square))
    else:
        covariance = jnp.broadcast_to(_symmetric(chain.covariance), square.shape)  # symmetric gradients, too
        first = _State(jnp.broadcast_to(chain.mean, (n, k)), covariance, None)
    variance = jnp.ones_like(chain.target) if chain.variance is None else chain.variance

    def meet(state: _State, now: tuple[Array, ...]):
        state, update, log_mass = _absorb(state, *now, unit=chain.unit)
        return state, (update, log_mass)

    def step(state: _State, now: tuple[Array, ...]):
        *evidence, shift = now
        state, (updates, log_mass) = over_time(meet, state, tuple(evidence))
        spread = lambda x, noise: _symmetric(mul(chain.transition, x, chain.transition.T) + noise)  # noqa: E731
        wide = None if state.wide is None else spread(state.wide, 0)
        onward = _State(apply(chain.transition, state.mean) + shift, spread(state.covariance, chain.noise), wide)
        return onward, (state, updates, log_mass.sum(1))

    later = jnp.concatenate([chain.shift[:, 1:], jnp.zeros_like(chain.shift[:, :1])], 1)
    return over_time(step, first, (chain.rows, chain.target, variance, later))[1]


def log_likelihood(chain: GaussianChain) -> Array:
    """(n,) log-likelihood of the evidence, exact diffuse for a diffuse first state; see `gaussian_chain.log_partition`."""
    return pairwise_sum(_filter(chain)[2].T)


def filtered(chain: GaussianChain) -> Filtered:
    """States given the evidence up to now."""
    state, _, log_mass = _filter(chain)
    mean, covariance = state.mean, state.covariance
    if state.wide is not None:
        open_ = (jnp.abs(state.wide) > jnp.sqrt(jnp.finfo(mean.dtype).eps)).any((-2, -1))
        mean = jnp.where(open_[..., None], jnp.nan, mean)
        covariance = jnp.where(open_[..., None, None], jnp.inf, covariance)
    return Filtered(mean, covariance, log_mass)


def _before(future: _Future, update: _Update) -> _Future:
    """What an observation and all after it say of the state that it meets."""
    row, weight = update.row, [x[:, None] * update.row for x in update.inverse]
    r = [w * update.surprise[:, None] for w in weight]
    n = [_outer(w, row) for w in weight]
    kept = eye_like(n[0]) - _outer(update.gain[0], row)
    turn = lambda left, x, right: mul(transpose(left), x, right)  # noqa: E731
    r = [a + apply(transpose(kept), b) for a, b in zip(r, future.r)]
    n = [a + turn(kept, b, kept) for a, b in zip(n, future.n)]
    if len(update.gain) > 1:
        less = -_outer(update.gain[1], row)
        mixed = lambda x: (lambda y: y + transpose(y))(turn(less, x, kept))  # noqa: E731
        r[1] = r[1] + apply(transpose(less), future.r[0])
        n[1] = n[1] + mixed(future.n[0])
        n[2] = n[2] + mixed(future.n[1]) + turn(less, future.n[0], less)
    return _Future(tuple(r), tuple(map(_symmetric, n)))


def smooth(chain: GaussianChain, limits: bool = False) -> Smoothed:
    """Means, covariances and noise of the states given all evidence (de Jong 1989; Koopman 1997).

    Args:
        chain: the chain.
        limits: whether to find what is left `wide` of a diffuse first state.
    """
    state, updates, log_mass = _filter(chain)
    move, zero = chain.transition, jnp.zeros_like(state.covariance[:, 0])
    orders = (1, 1) if state.wide is None else (2, 3)
    nothing = _Future((jnp.zeros_like(state.mean[:, 0]),) * orders[0], (zero,) * orders[1])

    def meet(future: _Future, update: _Update):
        return _before(future, update), None

    def step(future: _Future, now: tuple[_State, _Update]):
        state, updates = now
        pull, hold = [apply(move.T, r) for r in future.r], [mul(move.T, n, move) for n in future.n]
        mean = state.mean + apply(state.covariance, pull[0])
        fall = mul(state.covariance, hold[0], state.covariance)
        cross = mul(future.n[0], move, state.covariance)
        if state.wide is not None:
            mean = mean + apply(state.wide, pull[1])
            mixed = mul(state.wide, hold[1], state.covariance)
            fall = fall + mixed + transpose(mixed) + mul(state.wide, hold[2], state.wide)
            cross = cross + mul(future.n[1], move, state.wide)
        left = None
        if state.wide is not None and limits:
            mixed = mul(state.wide, hold[0], state.covariance)
            left = state.wide - mul(state.wide, hold[1], state.wide) - mixed - transpose(mixed)
            size = jnp.maximum(jnp.abs(state.wide).max((-2, -1), keepdims=True), 1)
            left = jnp.where(jnp.abs(left) > jnp.sqrt(jnp.finfo(mean.dtype).eps) * size, left, 0)
        noise = chain.noise - mul(chain.noise, future.n[0], chain.noise)
        pushed = (apply(chain.noise, future.r[0]), -mul(chain.noise, cross), _symmetric(noise))
        met, _ = over_time(meet, _Future(tuple(pull), tuple(hold)), updates, reverse=True)
        return met, (mean, _symmetric(state.covariance - fall), *pushed, left)

    # What is to come of the last step is nothing: its noise is dropped.
    _, (mean, covariance, push, cross, noise, wide) = over_time(step, nothing, (state, updates), reverse=True)
    push, cross, noise = (x[:, :-1] for x in (push, cross, noise))
    return Smoothed(mean, covariance, push, cross, noise, log_mass=pairwise_sum(log_mass.T), wide=wide)


def at_limit(mean: Array, covariance: Array, wide: Array | None) -> tuple[Array, Array]:
    """Mean (..., K) and covariance c wide + covariance (..., K, K) as c grows beyond all bounds: a mean without end is NaN."""
    if wide is None:
        return mean, covariance
    covariance = jnp.where(wide == 0, covariance, jnp.sign(wide) * jnp.inf)
    return jnp.where(jnp.diagonal(wide, axis1=-2, axis2=-1) == 0, mean, jnp.nan), covariance


def lag_one(chain: GaussianChain, smoothed: Smoothed) -> Array:
    """(n, T - 1, K, K) covariance of x_{t+1} and x_t given all evidence, the later state first."""
    return mul(chain.transition, smoothed.covariance[:, :-1]) + smoothed.step_cross
