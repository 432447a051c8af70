"""A chain of Gaussian states: log-partition, smoother, filter, draws and forecasts, whatever the noise, zero included.

One pass back in time gathers what the future says of each state, one pass forward turns it into moments: all else is
read off these two. The messages are precisions, so that a diffuse first state needs no special case; no covariance
is ever inverted, so that singular noise needs none either; and what is computed are residuals at the most probable
path, so that little cancels in float32. Evidence is a precision: the log-partition loses as many digits as evidence is
sharper than what the chain foretells (a ratio of variances), so that exact observations are out of reach.

Axes: K states, n chains, T steps, D rows of evidence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.linalg import cholesky, eye_like, inverse_lower, semi_cholesky, transpose
from jaxem.numerics import PRECISION, pairwise_sum
from jaxem.types import struct

PyTree = Any


@struct
class GaussianChain:
    """x_1 ~ Normal(mean, covariance), x_t = transition x_{t-1} + shift_t + Normal(0, noise), and evidence on each x_t.

    The evidence on x_t is exp(-|target_t - rows_t x_t|^2 / 2 - x_t' tilt_t x_t / 2 + x_t' lean_t). Rows of zeros say
    nothing: steps beyond a chain's end and missing observations have them.

    Attributes:
        mean: (K,), or None: then x_1 is diffuse, its covariance a limit of infinity times the identity.
        covariance: (K, K), or None.
        transition: (K, K).
        shift: (n, T, K), that of the first step unused.
        noise: (K, K), may be singular.
        rows: (n, T, D, K).
        target: (n, T, D).
        tilt: (n, T, K, K) symmetric, or None: zero.
        lean: (n, T, K), or None.
    """

    mean: Array | None
    covariance: Array | None
    transition: Array
    shift: Array
    noise: Array
    rows: Array
    target: Array
    tilt: Array | None = None
    lean: Array | None = None

    def precision(self) -> tuple[Array, Array]:
        """(n, T, K, K) G and (n, T, K) g of the evidence exp(-x' G x / 2 + g' x)."""
        precision = _mul(transpose(self.rows), self.rows)
        linear = _apply(transpose(self.rows), self.target)
        if self.tilt is None or self.lean is None:
            return precision, linear
        return precision + self.tilt, linear + self.lean


@struct
class Smoothed:
    """States given all evidence.

    Attributes:
        mean: (n, T, K).
        covariance: (n, T, K, K).
        step_mean: (n, T - 1, K) mean of the noise w_t = x_t - transition x_{t-1} - shift_t, from the second step on.
        step_gain: (n, T - 1, K, K) H: the mean of w_t given x_{t-1} is its mean - H (x_{t-1} - its mean).
        step_covariance: (n, T - 1, K, K) covariance of w_t given x_{t-1}.
        log_mass: (n,) log-partition.
    """

    mean: Array
    covariance: Array
    step_mean: Array
    step_gain: Array
    step_covariance: Array
    log_mass: Array


@struct
class Filtered:
    """States given the evidence up to now.

    Attributes:
        mean: (n, T, K).
        covariance: (n, T, K, K); NaN, as the mean, where a diffuse state is not determined yet.
        log_mass: (n, T) log-evidence of each step given those before; NaN throughout for a diffuse first state.
    """

    mean: Array
    covariance: Array
    log_mass: Array


def _mul(*matrices: Array) -> Array:
    out = matrices[0]
    for matrix in matrices[1:]:
        out = jnp.matmul(out, matrix, precision=PRECISION)
    return out


def _apply(matrix: Array, vector: Array) -> Array:
    return _mul(matrix, vector[..., None])[..., 0]


def _dot(left: Array, right: Array) -> Array:
    return (left * right).sum(-1)


@jax.custom_jvp
def absorb(covariance: Array, precision: Array) -> tuple[Array, Array]:
    """Covariance (I + P G)^-1 P once evidence of a precision G has met a covariance P, and log |I + P G|.

    P and G (..., K, K) may both be singular. The result is positive semidefinite by construction.
    """
    root = semi_cholesky(covariance)
    lower = cholesky(eye_like(root) + _mul(transpose(root), precision, root))
    half = _mul(root, transpose(inverse_lower(lower)))
    return _mul(half, transpose(half)), 2 * jnp.log(jnp.diagonal(lower, axis1=-2, axis2=-1)).sum(-1)


@absorb.defjvp
def _(primals, tangents):
    # In terms of the result, so that the derivative of a root, infinite where P is singular, is never met.
    (_, precision), (d_covariance, d_precision) = primals, tangents
    after, log_det = absorb(*primals)
    kept = eye_like(after) - _mul(after, precision)  # (I + P G)^-1
    change = _mul(kept, d_covariance, transpose(kept)) - _mul(after, d_precision, after)
    d_log_det = (_mul(precision, kept) * d_covariance).sum((-2, -1)) + (after * d_precision).sum((-2, -1))
    return (after, log_det), (change, d_log_det)


def _over_time(step: Callable, carry: PyTree, xs: PyTree, reverse: bool = False) -> tuple[PyTree, PyTree]:
    """`lax.scan` over the second axis of (n, T, ...)."""
    by_time = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), xs)
    carry, out = jax.lax.scan(step, carry, by_time, reverse=reverse)
    return carry, jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), out)


def _backward(chain: GaussianChain) -> tuple[Array, Array]:
    """(n, T, K, K) and (n, T, K): what the evidence on x_t and after it says of x_t."""
    move, noise = chain.transition, chain.noise
    precision, linear = chain.precision()

    def step(carry: tuple[Array, Array], now: tuple[Array, Array, Array]):
        later, pull = carry
        own, own_pull, shift = now
        through, _ = absorb(later, jnp.broadcast_to(noise, later.shape))
        pull = pull - _apply(through, _apply(noise, pull) + shift)
        new = (own + _mul(transpose(move), through, move), own_pull + _apply(transpose(move), pull))
        return new, new

    last = precision[:, -1], linear[:, -1]
    _, (before, pulls) = _over_time(step, last, (precision[:, :-1], linear[:, :-1], chain.shift[:, 1:]), reverse=True)
    join = lambda a, b: jnp.concatenate([a, b[:, None]], 1)  # noqa: E731
    return join(before, last[0]), join(pulls, last[1])


def _first(chain: GaussianChain, precision: Array, linear: Array) -> tuple[Array, Array, Array]:
    """Mean, covariance and log-mass of the first state once all evidence has met its prior."""
    if chain.mean is None or chain.covariance is None:
        inverse = inverse_lower(cholesky(precision))
        covariance = _mul(transpose(inverse), inverse)
        return _apply(covariance, linear), covariance, jnp.log(jnp.diagonal(inverse, axis1=-2, axis2=-1)).sum(-1)
    prior = jnp.broadcast_to(chain.covariance, precision.shape)
    mean = jnp.broadcast_to(chain.mean, linear.shape)
    through, log_det = absorb(precision, prior)
    force, move = _force(through, prior, linear - _apply(precision, mean))
    return mean + move, absorb(prior, precision)[0], -(_dot(move, force) + log_det) / 2


def _force(through: Array, noise: Array, pull: Array) -> tuple[Array, Array]:
    """(I + G S)^-1 pull of a pull on noise S by evidence of precision G, and how far it moves the noise.

    Not as what is left of the pull after the move: there sharp evidence would lose its digits twice.
    """
    force = pull - _apply(through, _apply(noise, pull))
    return force, _apply(noise, force)


@struct
class _Path:
    """The most probable path, and what is needed for its covariances; see `Smoothed`."""

    mean: Array
    first_covariance: Array
    step_mean: Array
    step_gain: Array
    step_covariance: Array
    log_mass: Array


def _path(chain: GaussianChain) -> _Path:
    precision, linear = _backward(chain)
    mean, covariance, log_mass = _first(chain, precision[:, 0], linear[:, 0])
    precision, linear, shift = precision[:, 1:], linear[:, 1:], chain.shift[:, 1:]
    noise = jnp.broadcast_to(chain.noise, precision.shape)
    through, log_det = absorb(precision, noise)

    def step(mean: Array, now: tuple[Array, Array, Array, Array]):
        precision, linear, shift, through = now
        expected = _apply(chain.transition, mean) + shift
        force, push = _force(through, chain.noise, linear - _apply(precision, expected))
        return expected + push, (expected + push, push, force)

    _, (means, push, force) = _over_time(step, mean, (precision, linear, shift, through))
    # The density of the path divided by that of the path given the evidence: no term is a difference of large ones.
    moves = -(_dot(push, force) + log_det) / 2
    means = jnp.concatenate([mean[:, None], means], 1)
    surprise = chain.target - _apply(chain.rows, means)
    evidence = -_dot(surprise, surprise) / 2
    if chain.tilt is not None and chain.lean is not None:
        evidence = evidence + _dot(means, chain.lean - _apply(chain.tilt, means) / 2)
    log_mass = log_mass + pairwise_sum(evidence.T) + (pairwise_sum(moves.T) if moves.shape[1] else 0)
    left, _ = absorb(noise, precision)
    return _Path(means, covariance, push, _mul(noise, through, chain.transition), left, log_mass)


def log_partition(chain: GaussianChain) -> Array:
    """(n,) log of the integral over all paths; its gradients are expected moments.

    With a diffuse first state the exact diffuse log-likelihood, in which the first state's log-normaliser, which is
    infinite, is left out (Durbin and Koopman 2012, section 7.2.2; de Jong 1991).
    """
    return _path(chain).log_mass


def smooth(chain: GaussianChain) -> Smoothed:
    """Means, covariances and noise of the states given all evidence."""
    path = _path(chain)
    onward = chain.transition - path.step_gain

    def step(covariance: Array, now: tuple[Array, Array]):
        onward, noise = now
        new = noise + _mul(onward, covariance, transpose(onward))
        return new, new

    _, rest = _over_time(step, path.first_covariance, (onward, path.step_covariance))
    covariance = jnp.concatenate([path.first_covariance[:, None], rest], 1)
    return Smoothed(path.mean, covariance, path.step_mean, path.step_gain, path.step_covariance, path.log_mass)


def lag_one(chain: GaussianChain, smoothed: Smoothed) -> Array:
    """(n, T - 1, K, K) covariance of x_{t+1} and x_t given all evidence, the later state first."""
    return _mul(chain.transition - smoothed.step_gain, smoothed.covariance[:, :-1])


def filtered(chain: GaussianChain) -> Filtered:
    """States given the evidence up to now.

    With a diffuse first state the chain is filtered given x_1, and x_1 estimated from what that leaves
    (augmented filter; de Jong 1991).
    """
    n, _, k = chain.shift.shape
    like = chain.shift[:, 0]
    square = jnp.broadcast_to(chain.noise, (n, k, k))
    diffuse = chain.mean is None or chain.covariance is None
    if chain.mean is None or chain.covariance is None:
        start = (jnp.zeros_like(like), jnp.zeros_like(square), (eye_like(square), jnp.zeros_like(square), jnp.zeros_like(like)))
    else:
        start = (jnp.broadcast_to(chain.mean, like.shape), jnp.broadcast_to(chain.covariance, square.shape), None)

    def step(carry: PyTree, now: PyTree):
        mean, covariance, about_first = carry
        precision, linear, rows, target, shift = now
        covariance, log_det = absorb(covariance, precision)
        pull = linear - _apply(precision, mean)
        new = mean + _apply(covariance, pull)
        surprise = _dot(target - _apply(rows, mean), target - _apply(rows, new))
        own = (new, covariance)
        if about_first is not None:
            effect, known, sums = about_first  # of x_1 on the state; precision of x_1, and times its mean
            sums = sums + _apply(transpose(effect), pull - _apply(precision, _apply(covariance, pull)))
            left = precision - _mul(precision, covariance, precision)
            known = known + _mul(transpose(effect), left, effect)
            effect = effect - _mul(covariance, precision, effect)
            own = _given_first(*own, effect, known, sums)
            about_first = (_mul(chain.transition, effect), known, sums)
        onward = _mul(chain.transition, covariance, chain.transition.T) + chain.noise
        return (_apply(chain.transition, new) + shift, onward, about_first), (*own, -(surprise + log_det) / 2)

    later = jnp.concatenate([chain.shift[:, 1:], jnp.zeros_like(chain.shift[:, :1])], 1)
    _, out = _over_time(step, start, (*chain.precision(), chain.rows, chain.target, later))
    return Filtered(out[0], out[1], jnp.full_like(out[2], jnp.nan) if diffuse else out[2])


def _given_first(mean: Array, covariance: Array, effect: Array, known: Array, sums: Array) -> tuple[Array, Array]:
    """Moments of a state once x_1 is integrated out; NaN where its precision is singular."""
    scale = jnp.sqrt(jnp.maximum(jnp.diagonal(known, axis1=-2, axis2=-1), 0))
    lower = cholesky(known / (scale[..., :, None] * scale[..., None, :]))
    pivots = jnp.diagonal(lower, axis1=-2, axis2=-1)
    determined = (pivots > 10 * jnp.sqrt(jnp.finfo(known.dtype).eps)).all(-1)  # NaN is not
    half = _mul(inverse_lower(lower), transpose(effect / scale[..., None, :]))
    first = _apply(transpose(inverse_lower(lower)), _apply(inverse_lower(lower), sums / scale)) / scale
    mean, covariance = mean + _apply(effect, first), covariance + _mul(transpose(half), half)
    return jnp.where(determined[:, None], mean, jnp.nan), jnp.where(determined[:, None, None], covariance, jnp.nan)


def sample_posterior(key: Array, chain: GaussianChain, n_samples: int = 1) -> Array:
    """(n_samples, n, T, K) paths drawn given all evidence."""
    path = _path(chain)
    first, steps = semi_cholesky(path.first_covariance), semi_cholesky(path.step_covariance)

    def draw(key: Array) -> Array:
        noise = jax.random.normal(key, path.mean.shape, path.mean.dtype)
        start = _apply(first, noise[:, 0])

        # Departures from the mean path follow a chain of their own.
        def step(away: Array, now: tuple[Array, Array]):
            onward, push = now
            new = _apply(onward, away) + push
            return new, new

        pushes = _apply(steps, noise[:, 1:])
        _, rest = _over_time(step, start, (chain.transition - path.step_gain, pushes))
        return path.mean + jnp.concatenate([start[:, None], rest], 1)

    return jax.vmap(draw)(jax.random.split(key, n_samples))


def forecast(mean: Array, covariance: Array, transition: Array, shift: Array, noise: Array) -> tuple[Array, Array]:
    """(n, H, K) means and (n, H, K, K) covariances of the states 1 .. H steps after Normal(mean, covariance).

    Args:
        mean: (n, K).
        covariance: (n, K, K).
        transition: (K, K).
        shift: (n, H, K).
        noise: (K, K).
    """

    def step(carry: tuple[Array, Array], shift: Array):
        mean, covariance = carry
        new = (_apply(transition, mean) + shift, _mul(transition, covariance, transition.T) + noise)
        return new, new

    return _over_time(step, (mean, covariance), shift)[1]


def sample(key: Array, mean: Array, covariance: Array, transition: Array, shift: Array, noise: Array) -> Array:
    """(n, T, K) paths of the chain without evidence; arguments as `GaussianChain` has them."""
    draws = jax.random.normal(key, shift.shape, shift.dtype)
    first = mean + _apply(semi_cholesky(covariance), draws[:, 0])
    pushes = _apply(semi_cholesky(noise), draws[:, 1:]) + shift[:, 1:]

    def step(state: Array, push: Array):
        new = _apply(transition, state) + push
        return new, new

    return jnp.concatenate([first[:, None], _over_time(step, first, pushes)[1]], 1)
