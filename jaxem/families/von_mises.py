"""Angles, one column or several that are independent given the component."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import i0e, i1e

from jaxem import constraints as sets
from jaxem.data.validation import check_finite, floating, vector_or_matrix
from jaxem.families.base import Family, columns
from jaxem.numerics.linalg import PRECISION
from jaxem.numerics.roots import root_of_decreasing
from jaxem.pytree import PyTree, struct
from jaxem.types import Params

#: Bounds of the estimated concentration. At the lower one the density is uniform to 1e-6; a component at the upper
#: one, within about a milliradian, has collapsed on one direction, where the likelihood has no bound.
CONCENTRATIONS = (1e-6, 1e6)


@struct
class VonMises(Family):
    """Von Mises density of angles in radians; parameters `mean` and `concentration`, (K,) for data (N,), (K, D) for (N, D).

    `mean` is a direction: any real number, 2 pi apart the same. Concentrations above about 1e4 lose digits in float32.
    """

    @property
    def constraints(self) -> dict[str, Any]:
        return {"mean": sets.Real(), "concentration": sets.Positive()}

    def natural(self, params: Params) -> dict[str, Array]:
        """Leaves `cosine` (t = cos x), `sine` (t = sin x) and `normalizer` (t = 1)."""
        mean, concentration = params["mean"], params["concentration"]
        return {
            "cosine": concentration * jnp.cos(mean),
            "sine": concentration * jnp.sin(mean),
            "normalizer": -math.log(2 * math.pi) - jnp.log(i0e(concentration)) - concentration,
        }

    def scores(self, natural: PyTree, data: Array) -> Array:
        x = columns(data)
        k = natural["cosine"].shape[0]
        weights = jnp.concatenate([natural["cosine"].reshape(k, -1), natural["sine"].reshape(k, -1)], 1)
        linear = jnp.matmul(weights, jnp.concatenate([jnp.cos(x), jnp.sin(x)]), precision=PRECISION)
        return linear + natural["normalizer"].reshape(k, -1).sum(1)[:, None]

    def m_step(self, stats: PyTree, params: Params) -> Params:
        """Direction and length of the mean resultant (Mardia and Jupp 2000, section 5.3).

        The new direction is the one nearest to the old, so that its path has no jumps for an accelerator to meet.
        """
        count, mean = stats["normalizer"], params["mean"]
        present = count > 0
        count = jnp.where(present, count, 1)
        cosine, sine = jnp.cos(mean), jnp.sin(mean)
        along = (stats["cosine"] * cosine + stats["sine"] * sine) / count
        across = (stats["sine"] * cosine - stats["cosine"] * sine) / count
        # Data that cancel have no direction: the old one stays.
        directed = present & (along**2 + across**2 > 0)
        along, across = jnp.where(directed, along, 1), jnp.where(directed, across, 0)
        length = jnp.where(directed, jnp.sqrt(along**2 + across**2), 0)
        like = jnp.ones_like(length)
        low, high = CONCENTRATIONS
        concentration = root_of_decreasing(lambda x: length - i1e(x) / i0e(x), low * like, high * like)
        return {
            "mean": mean + jnp.arctan2(across, along),
            "concentration": jnp.where(present, concentration, params["concentration"]),
        }

    def at_floor(self, params: Params) -> dict[str, Array]:
        concentration = params["concentration"]
        return {"mean": jnp.zeros(concentration.shape, bool), "concentration": concentration > 0.999 * CONCENTRATIONS[1]}

    def template(self, data: Array, n_components: int) -> Params:
        shape = (n_components, *data.shape[1:])
        return {"mean": jnp.zeros(shape, data.dtype), "concentration": jnp.ones(shape, data.dtype)}

    def validate(self, data: Any) -> Any:
        array = vector_or_matrix(data)
        check_finite(array, "data")
        return floating(array, "data", data)

    def features(self, data: Array) -> Array:
        """Cosines and sines."""
        x = columns(data).T
        return jnp.concatenate([jnp.cos(x), jnp.sin(x)], 1)

    def n_free_params(self, n_components: int, data: Array) -> int:
        return 2 * n_components * int(np.prod(data.shape[1:], dtype=int))

    def sample(self, key: Array, params: Params, component: Array) -> Array:
        mean, concentration = params["mean"][component], params["concentration"][component]
        angle = mean + _deviations(key, concentration)
        return jnp.arctan2(jnp.sin(angle), jnp.cos(angle))


def _deviations(key: Array, concentration: Array) -> Array:
    """Von Mises angles about zero, by rejection from a wrapped Cauchy density (Best and Fisher 1979).

    Differences that would cancel, for small and for large concentrations, are rewritten.
    """
    root = jnp.sqrt(1 + 4 * concentration**2)
    tau = 1 + root
    width = tau + jnp.sqrt(2 * tau)
    rho = 2 * concentration / width
    rest = (1 + 1 / (root + 2 * concentration) + jnp.sqrt(2 * tau)) / width  # 1 - rho
    excess = rest**2 / (2 * rho)  # Best and Fisher's r, less one

    def propose(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        key, angle, done = carry
        key, *keys = jax.random.split(key, 4)
        turn, level, side = (jax.random.uniform(k, angle.shape, angle.dtype) for k in keys)
        half = jnp.sin(math.pi * turn / 2) ** 2
        fall = 2 * excess * half / (excess + 2 - 2 * half)  # one less the cosine of the proposal
        pull = concentration * (excess + fall)
        accepted = jnp.log(pull) - jnp.log(level) + 1 - pull >= 0
        size = 2 * jnp.arcsin(jnp.sqrt(jnp.clip(fall / 2, 0, 1)))
        found = jnp.where(side < 0.5, -size, size)
        return key, jnp.where(accepted & ~done, found, angle), done | accepted

    start = (key, jnp.zeros_like(concentration), jnp.zeros(concentration.shape, bool))
    return jax.lax.while_loop(lambda carry: ~carry[2].all(), propose, start)[1]
