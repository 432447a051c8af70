"""Quasi-Newton on the EM map, from its last secants."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxem.algorithms.cycle import TwoMapsAndJump
from jaxem.engine.em import EM
from jaxem.engine.problem import Algorithm
from jaxem.pytree import static, struct


@struct
class Secants:
    """The last pairs of successive differences: `before` (q, P) and their images under the EM map, `after` (q, P)."""

    before: Array
    after: Array


@struct
class QuasiNewton(TwoMapsAndJump):
    """Quasi-Newton on the EM map from its last secants (Zhou, Alexander and Lange 2011, equation 5).

    Attributes:
        n_secants: q, pairs remembered.
        algorithm: what maps.
    """

    n_secants: int = static(default=5)
    algorithm: Algorithm = EM()

    def begin_jumper(self, dtype: Any, n_params: int) -> Secants:
        empty = jnp.zeros((self.n_secants, n_params), dtype)
        return Secants(empty, empty)

    def jump(self, first: Array, second: Array, third: Array, jumper: Secants) -> tuple[Array, Secants]:
        u, v = second - first, third - second
        before = jnp.roll(jumper.before, 1, 0).at[0].set(u)
        after = jnp.roll(jumper.after, 1, 0).at[0].set(v)
        # Least squares of smallest norm: secants not yet seen are zero, and more of them than P depend on each other.
        cutoff = 1e3 * float(jnp.finfo(u.dtype).eps)
        coefficients = jnp.linalg.pinv(before @ (before - after).T, rtol=cutoff) @ (before @ u)
        return coefficients @ after, Secants(before, after)
