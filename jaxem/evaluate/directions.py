"""Directions of the parameter space: free coordinates scaled to unit information, and those in which nothing changes."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxem.numerics.linalg import PRECISION

#: A matrix product in full precision, on a GPU too.
product = partial(jnp.matmul, precision=PRECISION)
#: Acceleration of a curve on which nothing changes, at unit speed: more than any seen, and far from what a saddle needs.
BENT = 10
#: Curvature, of unit information, above which no direction counts as flat however far from a maximum params are.
CURVED = 0.5


def tolerance(dtype: Any) -> float:
    """Eigenvalue of a matrix with a unit diagonal up to which it counts as zero."""
    return float(jnp.finfo(dtype).eps) ** (2 / 3)


def scaled(matrix: Array, boundary: Array) -> tuple[Array, Array]:
    """Scale of each coordinate, and the matrix with a unit diagonal; boundary coordinates as if alone."""
    diagonal = jnp.diagonal(matrix)
    scale = jnp.where(boundary | (diagonal <= 0), 1, 1 / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1)))
    return scale, _alone(matrix * scale * scale[:, None], boundary)


def _alone(matrix: Array, boundary: Array) -> Array:
    return jnp.where(boundary | boundary[:, None], jnp.eye(len(matrix), dtype=matrix.dtype), matrix)


def flat_directions(matrix: Array, score: Array, change: Array, boundary: Array) -> Array:
    """(P, P) projector onto the directions, in scaled coordinates, in which the log-likelihood is flat.

    There nothing changes to first order, at a maximum or not, and the curvature is no more than the score explains:
    along a curve on which nothing changes it is -score times the curve's acceleration. Equal components, a saddle,
    change no row to first order either, but bend.

    Args:
        matrix: (P, P) information.
        score: (P,) gradient of the log-likelihood.
        change: (P, P) sum of outer products of the gradients of all that may change: rows, or what is reported.
        boundary: (P,) bools, coordinates that are left out.
    """
    scale, unit = scaled(matrix, boundary)
    least = tolerance(unit.dtype)
    values, vectors = jnp.linalg.eigh(_alone(change * scale * scale[:, None], boundary))
    still = _projector(vectors, values <= least * values[-1])
    values, vectors = jnp.linalg.eigh(product(product(still, unit), still) + jnp.eye(len(unit), dtype=unit.dtype) - still)
    return _projector(vectors, jnp.abs(values) <= least + explained(score * scale, boundary))


def explained(score: Array, boundary: Array) -> Array:
    """Curvature that a flat direction may show away from a maximum, at this (P,) score in scaled coordinates."""
    return jnp.minimum(BENT * jnp.linalg.norm(jnp.where(boundary, 0, score)), CURVED)


def _projector(vectors: Array, chosen: Array) -> Array:
    vectors = vectors * chosen
    return product(vectors, vectors.T)
