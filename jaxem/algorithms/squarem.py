"""Squared extrapolation along two EM maps."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxem.algorithms.cycle import TwoMapsAndJump
from jaxem.engine.em import EM
from jaxem.engine.problem import Algorithm
from jaxem.pytree import static, struct


@struct
class StepLength:
    """Attributes: the longest step length allowed now; whether the last jump took it."""

    longest: Array
    taken: Array


@struct
class Squarem(TwoMapsAndJump):
    """Squared extrapolation (Varadhan and Roland 2008): theta - 2 a r + a^2 v from two maps, step length -a >= 1.

    Attributes:
        scheme: step length 1: (r.v)/(v.v), 2: (r.r)/(r.v), 3: |r| / |v| in absolute value, the steadiest.
        growth: factor by which the longest step length allowed grows when it was taken and kept, and
            shrinks when it failed.
        algorithm: what maps.
    """

    scheme: int = static(default=3)
    growth: float | Array = 4.0
    algorithm: Algorithm = EM()

    def __post_init__(self) -> None:
        if self.scheme not in (1, 2, 3):
            raise ValueError(f"Squarem: scheme must be 1, 2 or 3; got {self.scheme!r}")

    def begin_jumper(self, dtype: Any, n_params: int) -> StepLength:
        del n_params
        return StepLength(jnp.ones((), dtype), jnp.array(False))

    def learn(self, jumper: StepLength, kept: Array, failed: Array) -> StepLength:
        shorter = jnp.maximum(jumper.longest / self.growth, 1)
        longest = jnp.where(kept & jumper.taken, jumper.longest * self.growth, jumper.longest)
        longest = jnp.where(failed & jumper.taken, shorter, longest)
        return StepLength(longest, jumper.taken & ~kept & ~failed)

    def jump(self, first: Array, second: Array, third: Array, jumper: StepLength) -> tuple[Array, StepLength]:
        r = second - first
        v = (third - second) - r
        rr, rv, vv = r @ r, r @ v, v @ v
        length = {1: lambda: -rv / vv, 2: lambda: -rr / rv, 3: lambda: jnp.sqrt(rr / vv)}[self.scheme]()
        length = jnp.clip(jnp.where(jnp.isfinite(length), length, 1), 1, jumper.longest)
        taken = length == jumper.longest
        # A length of one is the second map itself: no jump, and the limit may grow.
        plain = jnp.abs(length - 1) <= 0.01
        longest = jnp.where(plain & taken, jumper.longest * self.growth, jumper.longest)
        target = first + 2 * length * r + length**2 * v
        return jnp.where(plain, 0, target - third), StepLength(longest.astype(r.dtype), taken & ~plain)
