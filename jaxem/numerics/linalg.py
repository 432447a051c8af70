"""Cholesky factors and triangular inverses of many small matrices, in plain XLA operations.

The LAPACK calls that JAX makes for a batch of matrices on a CPU wait for helpers from the pool of
threads on which they run themselves: two of them at once on a machine with two cores never end. On a
GPU the calls cost more than the arithmetic. Here each column is one vectorized step over the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

#: Every matrix product of jaxem asks for it by name: NVIDIA GPUs otherwise run float32 in TF32.
PRECISION = jax.lax.Precision.HIGHEST


#: Up to this size the loop over columns is unrolled.
UNROLLED = 8
#: Beyond this size a matrix is split in halves joined by matrix products.
WHOLE = 16


def _loop(n: int, body: Callable, carry: Array) -> Array:
    if n > UNROLLED:
        return jax.lax.fori_loop(0, n, body, carry)
    for j in range(n):
        carry = body(j, carry)
    return carry


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=PRECISION)


def transpose(matrix: Array) -> Array:
    """Swap the last two axes."""
    return jnp.swapaxes(matrix, -1, -2)


def _lower(matrix: Array) -> Array:
    return jnp.where(np.tri(matrix.shape[-1], dtype=bool), matrix, 0)


@jax.custom_jvp
def cholesky(matrix: Array) -> Array:
    """(..., D, D) lower Cholesky factors; NaN where a matrix is not positive definite. Reads the lower triangle."""
    return _factor(matrix)[0]


def _factor(matrix: Array) -> tuple[Array, Array]:
    """Cholesky factor and its inverse."""
    d = matrix.shape[-1]
    if d <= WHOLE:
        lower = _cholesky_by_columns(matrix)
        return lower, _inverse_by_rows(lower)
    half = d // 2
    first, first_inverse = _factor(matrix[..., :half, :half])
    below = _matmul(matrix[..., half:, :half], transpose(first_inverse))
    second, second_inverse = _factor(matrix[..., half:, half:] - _matmul(below, transpose(below)))
    below_inverse = -_matmul(second_inverse, _matmul(below, first_inverse))
    return _join(first, below, second), _join(first_inverse, below_inverse, second_inverse)


def _join(first: Array, below: Array, second: Array) -> Array:
    above = jnp.zeros((*first.shape[:-1], second.shape[-1]), first.dtype)
    return jnp.concatenate([jnp.concatenate([first, above], -1), jnp.concatenate([below, second], -1)], -2)


def _cholesky_by_columns(matrix: Array, rounding: float | None = None) -> Array:
    d = matrix.shape[-1]
    index = np.arange(d)

    def column(j, lower):
        # Columns from j on are still zero, so the whole row may enter the sum.
        rest = _pick(matrix, j, -1) - (lower * _pick(lower, j, -2)[..., None, :]).sum(-1)
        pivot = jnp.where(index == j, rest, 0).sum(-1, keepdims=True)
        if rounding is not None:
            own = jnp.where(index == j, _pick(matrix, j, -1), 0).sum(-1, keepdims=True)
            pivot = jnp.maximum(pivot, rounding * own)
            rest = jnp.where(index == j, pivot, jnp.where(pivot > 0, rest, 0))
            pivot = jnp.where(pivot > 0, pivot, 1)
        value = jnp.where(index >= j, rest / jnp.sqrt(pivot), 0)
        return jnp.where(index == j, value[..., None], lower)

    return _loop(d, column, jnp.zeros_like(matrix))


def _pick(matrix: Array, j: int | Array, axis: int) -> Array:
    return jax.lax.dynamic_index_in_dim(matrix, j, axis, keepdims=False)


def semi_cholesky(matrix: Array) -> Array:
    """(..., D, D) lower Cholesky factors of positive semidefinite matrices, columns of zeros where an entry is certain.

    Pivots are kept above the rounding of the entries that they are left of. It has no derivative where a matrix is
    singular: give what is computed with it a derivative of its own.
    """
    return _cholesky_by_columns(matrix, float(jnp.finfo(matrix.dtype).eps))


@cholesky.defjvp
def _(primals, tangents):
    (matrix,), (change,) = primals, tangents
    lower = cholesky(matrix)
    inverse = inverse_lower(lower)
    change = (change + transpose(change)) / 2
    inner = _lower(_matmul(_matmul(inverse, change), transpose(inverse)))
    half = jnp.where(np.eye(matrix.shape[-1], dtype=bool), inner / 2, inner)
    return lower, _matmul(lower, half)


@jax.custom_jvp
def inverse_lower(lower: Array) -> Array:
    """(..., D, D) inverses of lower triangular matrices."""
    d = lower.shape[-1]
    if d <= WHOLE:
        return _inverse_by_rows(lower)
    half = d // 2
    first, second = inverse_lower(lower[..., :half, :half]), inverse_lower(lower[..., half:, half:])
    return _join(first, -_matmul(second, _matmul(lower[..., half:, :half], first)), second)


def _inverse_by_rows(lower: Array) -> Array:
    d = lower.shape[-1]
    index = np.arange(d)

    def row(i, inverse):
        own = _pick(lower, i, -2)
        pivot = jnp.where(index == i, own, 0).sum(-1, keepdims=True)
        # Rows from i on are still zero, so the whole row may enter the sum.
        rest = jnp.where(index == i, 1, 0) - (own[..., :, None] * inverse).sum(-2)
        return jnp.where(index[:, None] == i, (rest / pivot)[..., None, :], inverse)

    return _loop(d, row, jnp.zeros_like(lower))


@inverse_lower.defjvp
def _(primals, tangents):
    (lower,), (change,) = primals, tangents
    inverse = inverse_lower(lower)
    return inverse, -_matmul(_matmul(inverse, _lower(change)), inverse)


def is_positive_definite(matrix: Array) -> Array:
    """(...,) whether (..., D, D) symmetric matrices are by more than rounding, in units of their own.

    By elimination, which takes fewer operations than a factor: a pivot is to stay above D eps times its diagonal.
    """
    d = matrix.shape[-1]

    def eliminate(j, carry):
        rest, least = carry
        column = _pick(rest, j, -1)
        pivot = _pick(column, j, -1)
        rest = rest - column[..., :, None] * (column / pivot[..., None])[..., None, :]
        return rest, jnp.minimum(least, pivot * (pivot / pivot))  # NaN where it is infinite

    largest = jnp.full(matrix.shape[:-2], jnp.finfo(matrix.dtype).max, matrix.dtype)
    shrunk = matrix * (1 - np.eye(d, dtype=matrix.dtype) * d * np.finfo(matrix.dtype).eps)
    return jax.lax.fori_loop(0, d, eliminate, (shrunk, largest))[1] > 0


def eye_like(matrix: Array) -> Array:
    """Identities in the shape and dtype of a stack of square matrices."""
    return jnp.broadcast_to(jnp.eye(matrix.shape[-1], dtype=matrix.dtype), matrix.shape)


#: Terms of the Taylor series of `expm`, and squarings at most.
TERMS, SQUARINGS = 14, 12


def expm(matrix: Array) -> Array:
    """(..., S, S) exponentials of matrices whose entries off the diagonal are not negative.

    By scaling and squaring of exp(M + aI) exp(-a) with M + aI non-negative: no term cancels another, no system is
    solved, and equal eigenvalues are nothing special, also to its derivatives of any order.
    """
    diagonal = jnp.diagonal(matrix, axis1=-2, axis2=-1)
    shift = jax.lax.stop_gradient(-diagonal.min(-1))[..., None, None]
    eye = eye_like(matrix)
    shifted = matrix + shift * eye
    norm = jax.lax.stop_gradient(shifted.sum(-1).max(-1))
    halvings = jnp.clip(jnp.ceil(jnp.log2(jnp.maximum(norm, 1e-30))) + 1, 0, SQUARINGS)[..., None, None]
    scale = jnp.exp2(-halvings)
    small = shifted * scale
    # Loops rather than many products written out: compiling them, and their derivatives, is what takes time.
    result = jax.lax.fori_loop(0, TERMS, lambda i, series: eye + _matmul(small, series) / (TERMS - i), eye)
    result = result * jnp.exp(-shift * scale)
    square = lambda i, x: jnp.where(halvings > i, _matmul(x, x), x)  # noqa: E731
    return jax.lax.fori_loop(0, SQUARINGS, square, result)


def inverse_spd(matrix: Array) -> tuple[Array, Array]:
    """(..., D, D) inverses of symmetric positive definite matrices, and (...,) the logarithms of their determinants."""
    lower = cholesky(matrix)
    inverse = inverse_lower(lower)
    log_det = 2 * jnp.log(jnp.diagonal(lower, axis1=-2, axis2=-1)).sum(-1)
    return _matmul(transpose(inverse), inverse), log_det


def least_squares(gram: Array, right: Array, free: Array | None = None) -> Array:
    """(..., P) solutions of normal equations; zero where `free` (..., P) is False, or where nothing is known.

    Of Cholesky factors and not of eigenvectors, whose derivatives are NaN where two eigenvalues are equal: in every
    balanced design.

    Args:
        gram: (..., P, P) positive semidefinite.
        right: (..., P).
        free: (..., P) bools, or None: all.
    """
    diagonal = jnp.diagonal(gram, axis1=-2, axis2=-1)
    known = diagonal > 0 if free is None else free & (diagonal > 0)
    scale = jnp.sqrt(jnp.where(known, diagonal, 1))
    pair = known[..., :, None] & known[..., None, :]
    # What inputs that do not vary leave undetermined is left to a ridge of the size of rounding.
    ridge = jnp.where(known, 10 * gram.shape[-1] * jnp.finfo(gram.dtype).eps, 1)
    system = jnp.where(pair, gram / (scale[..., :, None] * scale[..., None, :]), 0) + ridge[..., None] * eye_like(gram)
    inverse = inverse_lower(cholesky(system))
    wanted = (jnp.where(known, right, 0) / scale)[..., None]

    def solved(right: Array) -> Array:
        return _matmul(transpose(inverse), _matmul(inverse, right))

    # The second solution takes back what the ridge took from the first.
    first = solved(wanted)
    return (first + solved(wanted - _matmul(system, first) + ridge[..., None] * first))[..., 0] / scale
