"""Where a restart starts: random partitions of the data, or what the user knows.

A strategy has `initialize(model, key, data, weight) -> params`. Distances are measured on the model's
`features`: for Gaussian families, standardized data.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.pytree import PyTree, static, struct
from jaxem.types import Params


class Init:
    """A way to start. `needs_key` tells whether it is random."""

    needs_key = True

    def initialize(self, model: Any, key: Array | None, data: PyTree, weight: Array) -> Params:
        """Starting parameters of one restart."""
        x = model.features(data)
        labels = self.partition(key, x, weight.astype(x.dtype), model.n_components)
        return model.start(labels, data, weight, smooth=True)

    def partition(self, key: Any, x: Array, weight: Array, k: int) -> Array:
        """(N,) component of each row of the features x (N, D)."""
        raise NotImplementedError


def nearest(x: Array, centers: Array) -> Array:
    """(N,) index of the nearest of the centers (K, D)."""
    return _distances(x, centers).argmin(0)


def _distances(x: Array, centers: Array) -> Array:
    """(K, N) squared distances less |x|^2."""
    return (centers * centers).sum(1)[:, None] - 2 * centers @ x.T


def _draw_row(key: Array, mass: Array) -> Array:
    """Index drawn in proportion to `mass`."""
    total = jnp.cumsum(mass)
    u = jax.random.uniform(key, (), mass.dtype) * total[-1]
    index = jnp.searchsorted(total, u, side="right")
    # Rounding may carry u past the last row with mass.
    return jnp.where(mass[jnp.minimum(index, mass.shape[0] - 1)] > 0, jnp.minimum(index, mass.shape[0] - 1), mass.argmax())


@struct
class KMeansPlusPlus(Init):
    """Centers spread by k-means++ (Arthur and Vassilvitskii 2007), rows to the nearest."""

    def centers(self, key: Array, x: Array, weight: Array, k: int) -> Array:
        keys = jax.random.split(key, k)
        first = x[_draw_row(keys[0], weight)]

        def add(gap, key):
            center = x[_draw_row(key, jnp.where(gap.max() > 0, gap, weight))]
            gap = jnp.minimum(gap, weight * jnp.square(x - center).sum(1))
            return gap, center

        gap = weight * jnp.square(x - first).sum(1)
        _, others = jax.lax.scan(add, gap, keys[1:])
        return jnp.concatenate([first[None], others])

    def partition(self, key: Any, x: Array, weight: Array, k: int) -> Array:
        return nearest(x, self.centers(key, x, weight, k))


@struct
class KMeans(Init):
    """k-means++ followed by Lloyd's iterations.

    Attributes:
        n_steps: iterations.
    """

    n_steps: int | Array = 10

    def partition(self, key: Any, x: Array, weight: Array, k: int) -> Array:
        def lloyd(_, centers):
            labels = nearest(x, centers)
            mass = jax.ops.segment_sum(weight, labels, k)
            total = jax.ops.segment_sum(weight[:, None] * x, labels, k)
            return jnp.where(mass[:, None] > 0, total / jnp.where(mass > 0, mass, 1)[:, None], centers)

        centers = KMeansPlusPlus().centers(key, x, weight, k)
        return nearest(x, jax.lax.fori_loop(0, self.n_steps, lloyd, centers))


@struct
class RandomRows(Init):
    """K distinct rows drawn at random as centers, rows to the nearest."""

    def partition(self, key: Any, x: Array, weight: Array, k: int) -> Array:
        # Gumbel keys: a weighted draw without replacement.
        gumbel = jax.random.gumbel(key, weight.shape, weight.dtype)
        order = jnp.where(weight > 0, jnp.log(jnp.where(weight > 0, weight, 1)) + gumbel, -jnp.inf)
        return nearest(x, x[jax.lax.top_k(order, k)[1]])


@struct
class RandomResponsibilities(Init):
    """Responsibilities drawn from a Dirichlet distribution, for each row by itself.

    Attributes:
        concentration: small values give nearly hard assignments.
    """

    concentration: float | Array = 1.0

    def initialize(self, model: Any, key: Array | None, data: PyTree, weight: Array) -> Params:
        assert key is not None
        alpha = jnp.full((model.n_components,), self.concentration, weight.dtype)
        return model.start(jax.random.dirichlet(key, alpha, weight.shape), data, weight, smooth=True)


@struct
class Labels(Init):
    """The M-step from given labels (N,) in 0..K-1 or responsibilities (N, K): every restart starts alike.

    Attributes:
        labels: integers (N,), or floats (N, K) whose rows sum to one.
    """

    labels: Any
    needs_key = False

    def initialize(self, model: Any, key: Array | None, data: PyTree, weight: Array) -> Params:
        del key
        return model.start(jnp.asarray(self.labels), data, weight, smooth=False)

    def check(self, shape: tuple[int, ...], k: int) -> None:
        """Raise ValueError for concrete labels that do not fit data of leading `shape`, (N,) or (B, T), and k components."""
        labels = np.asarray(self.labels)
        if np.issubdtype(labels.dtype, np.integer):
            if labels.shape != shape or labels.min() < 0 or labels.max() >= k:
                raise ValueError(f"init labels must be {shape} integers in 0..{k - 1}; got shape {labels.shape}, range"
                                 f" {labels.min()}..{labels.max()}")  # fmt: skip
        elif labels.shape != (*shape, k) or not np.allclose(labels.sum(-1), 1, atol=1e-5) or (labels < 0).any():
            raise ValueError(f"init responsibilities must be {(*shape, k)} with rows that sum to 1; got shape {labels.shape}")


Responsibilities = Labels


@struct
class Quantiles(Init):
    """Equal shares of the rows in the order of one feature: every restart starts alike.

    Attributes:
        column: of the model's features.
    """

    column: int = static(default=0)
    needs_key = False

    def partition(self, key: Any, x: Array, weight: Array, k: int) -> Array:
        del key
        order = jnp.argsort(x[:, self.column])
        below = jnp.cumsum(weight[order]) - weight[order] / 2
        share = jnp.floor(k * below / weight.sum()).astype(jnp.int32)
        return jnp.zeros(len(x), jnp.int32).at[order].set(jnp.clip(share, 0, k - 1))


@struct
class Each(Init):
    """Given parameters for each restart.

    Attributes:
        params: leaves lead with R.
    """

    params: Any
    needs_key = False

    def __len__(self) -> int:
        """R, to be passed as `n_restarts`."""
        return len(jax.tree.leaves(self.params)[0])
