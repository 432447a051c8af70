"""A chain of Gaussian states: log-partition under any evidence, draws and forecasts, whatever the noise, zero included.

One pass back in time gathers what the future says of each state, one pass forward turns it into the most probable path.
The messages are precisions, so that evidence may be any quadratic form, whose derivatives are expected moments; no
covariance is ever inverted, so that singular noise needs no special case; and what is computed are residuals at the
most probable path, so that little cancels in float32. But it loses as many digits as evidence is sharper than what the
chain foretells (a ratio of variances): `kalman`, in covariances, does not.

Axes: K states, n chains, T steps, D rows of evidence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.numerics.linalg import PRECISION, cholesky, eye_like, inverse_lower, semi_cholesky, transpose
from jaxem.numerics.trees import pairwise_sum
from jaxem.pytree import PyTree, struct


@struct
class GaussianChain:
    """x_1 ~ Normal(mean, covariance), x_t = transition x_{t-1} + shift_t + Normal(0, noise), and evidence on each x_t.

    The evidence on x_t is the density of target_t = rows_t x_t + Normal(0, variance_t) without its factors 2 pi, times
    exp(-x_t' tilt_t x_t / 2 + x_t' lean_t). Rows and targets of zeros with variances of one say nothing: steps beyond a
    chain's end and missing observations have them.

    Attributes:
        mean: (K,), or None: then x_1 is diffuse, its covariance a limit of infinity times the identity.
        covariance: (K, K), or None.
        transition: (K, K).
        shift: (n, T, K), that of the first step unused.
        noise: (K, K), may be singular.
        rows: (n, T, D, K).
        target: (n, T, D).
        variance: (n, T, D), or None: ones.
        tilt: (n, T, K, K) symmetric, or None: zero.
        lean: (n, T, K), or None.
        unit: log of the unit that states are measured in, for a diffuse one: its log-likelihood is that of states in units
            of one. None: zero.
    """

    mean: Array | None
    covariance: Array | None
    transition: Array
    shift: Array
    noise: Array
    rows: Array
    target: Array
    variance: Array | None = None
    tilt: Array | None = None
    lean: Array | None = None
    unit: Array | None = None

    def whitened(self) -> GaussianChain:
        """The same evidence, but for a factor, with variances of one."""
        if self.variance is None:
            return self
        scale = 1 / jnp.sqrt(self.variance)
        rows, target = scale[..., None] * self.rows, scale * self.target
        return dataclasses.replace(self, rows=rows, target=target, variance=None)

    def precision(self) -> tuple[Array, Array]:
        """(n, T, K, K) G and (n, T, K) g of the evidence exp(-x' G x / 2 + g' x), of a chain that is `whitened`."""
        precision = mul(transpose(self.rows), self.rows)
        linear = apply(transpose(self.rows), self.target)
        if self.tilt is None or self.lean is None:
            return precision, linear
        return precision + self.tilt, linear + self.lean


def mul(*matrices: Array) -> Array:
    """Product of matrices (..., L, M), (..., M, N), ... in full precision."""
    out = matrices[0]
    for matrix in matrices[1:]:
        out = jnp.matmul(out, matrix, precision=PRECISION)
    return out


def apply(matrix: Array, vector: Array) -> Array:
    """(..., M) product of matrices (..., M, N) and vectors (..., N)."""
    return mul(matrix, vector[..., None])[..., 0]


def dot(left: Array, right: Array) -> Array:
    """(...) inner products of vectors (..., N)."""
    return (left * right).sum(-1)


@jax.custom_jvp
def absorb(covariance: Array, precision: Array) -> tuple[Array, Array]:
    """Covariance (I + P G)^-1 P once evidence of a precision G has met a covariance P, and log |I + P G|.

    P and G (..., K, K) may both be singular. The result is positive semidefinite by construction.
    """
    root = semi_cholesky(covariance)
    lower = cholesky(eye_like(root) + mul(transpose(root), precision, root))
    half = mul(root, transpose(inverse_lower(lower)))
    return mul(half, transpose(half)), 2 * jnp.log(jnp.diagonal(lower, axis1=-2, axis2=-1)).sum(-1)


@absorb.defjvp
def _(primals, tangents):
    # In terms of the result, so that the derivative of a root, infinite where P is singular, is never met.
    (_, precision), (d_covariance, d_precision) = primals, tangents
    after, log_det = absorb(*primals)
    kept = eye_like(after) - mul(after, precision)  # (I + P G)^-1
    change = mul(kept, d_covariance, transpose(kept)) - mul(after, d_precision, after)
    d_log_det = (mul(precision, kept) * d_covariance).sum((-2, -1)) + (after * d_precision).sum((-2, -1))
    return (after, log_det), (change, d_log_det)


def over_time(step: Callable, carry: PyTree, xs: PyTree, reverse: bool = False) -> tuple[PyTree, PyTree]:
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
        pull = pull - apply(through, apply(noise, pull) + shift)
        new = (own + mul(transpose(move), through, move), own_pull + apply(transpose(move), pull))
        return new, new

    last = precision[:, -1], linear[:, -1]
    _, (before, pulls) = over_time(step, last, (precision[:, :-1], linear[:, :-1], chain.shift[:, 1:]), reverse=True)
    join = lambda a, b: jnp.concatenate([a, b[:, None]], 1)  # noqa: E731
    return join(before, last[0]), join(pulls, last[1])


def _first(chain: GaussianChain, precision: Array, linear: Array) -> tuple[Array, Array, Array]:
    """Mean, covariance and log-mass of the first state once all evidence has met its prior."""
    if chain.mean is None or chain.covariance is None:
        inverse = inverse_lower(cholesky(precision))
        covariance = mul(transpose(inverse), inverse)
        log_mass = jnp.log(jnp.diagonal(inverse, axis1=-2, axis2=-1)).sum(-1)
        log_mass = log_mass if chain.unit is None else log_mass + precision.shape[-1] * chain.unit
        return apply(covariance, linear), covariance, log_mass
    prior = jnp.broadcast_to(chain.covariance, precision.shape)
    mean = jnp.broadcast_to(chain.mean, linear.shape)
    through, log_det = absorb(precision, prior)
    force, move = _force(through, prior, linear - apply(precision, mean))
    return mean + move, absorb(prior, precision)[0], -(dot(move, force) + log_det) / 2


def _force(through: Array, noise: Array, pull: Array) -> tuple[Array, Array]:
    """(I + G S)^-1 pull of a pull on noise S by evidence of precision G, and how far it moves the noise.

    Not as what is left of the pull after the move: there sharp evidence would lose its digits twice.
    """
    force = pull - apply(through, apply(noise, pull))
    return force, apply(noise, force)


@struct
class _Path:
    """The most probable path, and what is needed for its covariances.

    Attributes:
        mean: (n, T, K).
        first_covariance: (n, K, K).
        step_gain: (n, T - 1, K, K) H: the mean of the noise w_t given x_{t-1} is its mean - H (x_{t-1} - its mean).
        step_covariance: (n, T - 1, K, K) covariance of w_t given x_{t-1}.
        log_mass: (n,).
    """

    mean: Array
    first_covariance: Array
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
        expected = apply(chain.transition, mean) + shift
        force, push = _force(through, chain.noise, linear - apply(precision, expected))
        return expected + push, (expected + push, push, force)

    _, (means, push, force) = over_time(step, mean, (precision, linear, shift, through))
    # The density of the path divided by that of the path given the evidence: no term is a difference of large ones.
    moves = -(dot(push, force) + log_det) / 2
    means = jnp.concatenate([mean[:, None], means], 1)
    surprise = chain.target - apply(chain.rows, means)
    evidence = -dot(surprise, surprise) / 2
    if chain.tilt is not None and chain.lean is not None:
        evidence = evidence + dot(means, chain.lean - apply(chain.tilt, means) / 2)
    log_mass = log_mass + pairwise_sum(evidence.T) + (pairwise_sum(moves.T) if moves.shape[1] else 0)
    left, _ = absorb(noise, precision)
    return _Path(means, covariance, mul(noise, through, chain.transition), left, log_mass)


def log_partition(chain: GaussianChain) -> Array:
    """(n,) log of the integral over all paths; its gradients are expected moments.

    With a diffuse first state the exact diffuse log-likelihood, in which the first state's log-normaliser, which is
    infinite, is left out (Durbin and Koopman 2012, section 7.2.2; de Jong 1991).
    """
    log_mass = _path(chain.whitened()).log_mass
    return log_mass if chain.variance is None else log_mass - jnp.log(chain.variance).sum((1, 2)) / 2


def sample_posterior(key: Array, chain: GaussianChain, n_samples: int = 1) -> Array:
    """(n_samples, n, T, K) paths drawn given all evidence."""
    path = _path(chain.whitened())
    first, steps = semi_cholesky(path.first_covariance), semi_cholesky(path.step_covariance)

    def draw(key: Array) -> Array:
        noise = jax.random.normal(key, path.mean.shape, path.mean.dtype)
        start = apply(first, noise[:, 0])

        # Departures from the mean path follow a chain of their own.
        def step(away: Array, now: tuple[Array, Array]):
            onward, push = now
            new = apply(onward, away) + push
            return new, new

        pushes = apply(steps, noise[:, 1:])
        _, rest = over_time(step, start, (chain.transition - path.step_gain, pushes))
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
        new = (apply(transition, mean) + shift, mul(transition, covariance, transition.T) + noise)
        return new, new

    return over_time(step, (mean, covariance), shift)[1]


def sample(key: Array, mean: Array, covariance: Array, transition: Array, shift: Array, noise: Array) -> Array:
    """(n, T, K) paths of the chain without evidence; arguments as `GaussianChain` has them."""
    draws = jax.random.normal(key, shift.shape, shift.dtype)
    first = mean + apply(semi_cholesky(covariance), draws[:, 0])
    pushes = apply(semi_cholesky(noise), draws[:, 1:]) + shift[:, 1:]

    def step(state: Array, push: Array):
        new = apply(transition, state) + push
        return new, new

    return jnp.concatenate([first[:, None], over_time(step, first, pushes)[1]], 1)
