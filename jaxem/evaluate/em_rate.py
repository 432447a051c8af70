"""How fast EM converges, and along which directions it is slow: the eigenvalues of the missing information."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from jaxem.evaluate.directions import product, scaled
from jaxem.evaluate.information import Information, jacobian_of
from jaxem.numerics.linalg import cholesky, inverse_lower, transpose
from jaxem.pytree import struct
from jaxem.types import Params


@struct
class MissingInformation:
    """Where EM loses time: the share of the complete information that is missing, direction by direction.

    Attributes:
        fraction: (P,) eigenvalues of complete^-1 missing, largest first; zero for coordinates on a boundary.
            The first is EM's rate of convergence, each the factor by which EM shrinks an error along its direction.
        direction: the directions as changes of the parameters, leaves lead with P; of unit complete information.
    """

    fraction: Array
    direction: Params


def missing_information(information: Information) -> MissingInformation:
    """Fractions of missing information (Dempster, Laird and Rubin 1977, section 3; Meng and Rubin 1991).

    Args:
        information: of method "louis" or "oakes", at a maximum.

    Returns:
        A `MissingInformation`.

    Raises:
        TypeError: for another method.
    """
    return _directions(information, information.missing)


@jax.jit
def _directions(information: Information, missing: Array) -> MissingInformation:
    boundary = information.boundary
    scale, unit = scaled(missing + information.matrix, boundary)
    missing = jnp.where(boundary | boundary[:, None], 0, missing * scale * scale[:, None])
    root = inverse_lower(cholesky(unit))
    values, vectors = jnp.linalg.eigh(product(product(root, missing), transpose(root)))
    directions = product(jacobian_of(information), scale[:, None] * product(transpose(root), vectors))
    unravel = ravel_pytree(information.params)[1]
    return MissingInformation(values[::-1], jax.vmap(unravel)(directions.T[::-1]))


def em_rate(information: Information) -> Array:
    """EM's linear rate of convergence: the largest fraction of missing information. See `missing_information`."""
    return missing_information(information).fraction[0]
