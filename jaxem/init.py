"""Where a restart starts: random partitions of the data, or what the user knows.

A strategy parts the data among the components, and a model that can start from that is `Startable`. Distances are
measured on the model's `features`: for Gaussian families, standardized data.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.model import undefined
from jaxem.pytree import PyTree, static, struct
from jaxem.types import Params


class Startable:
    """A model that strategies can start."""

    def initialize_by(self, strategy: Init, key: Array | None, data: PyTree, weight: Array) -> Params:
        """Starting parameters of one restart by a strategy."""
        raise undefined(self, "initialize_by")


class Partitioned(Startable):
    """A model whose start follows from which component each row belongs to."""

    #: K.
    n_components: int

    def features(self, data: PyTree) -> Array:
        """(N, D) real features in which strategies measure distance."""
        raise undefined(self, "features")

    def start(self, responsibilities: Array, data: PyTree, weight: Array, smooth: bool) -> Params:
        """Parameters from labels (N,) or responsibilities (N, K).

        Args:
            responsibilities: integers (N,) in 0..K-1, or floats (N, K).
            data: the rows.
            weight: (N,).
            smooth: add to each component one row's worth of the statistics of all, so that none is empty or flat.
        """
        raise undefined(self, "start")

    def initialize_by(self, strategy: Init, key: Array | None, data: PyTree, weight: Array) -> Params:
        """Those of `start`, from the rows' components by the strategy.

        Raises:
            TypeError: for components that are neither integers nor floats.
            ValueError: for components of a shape that fits neither labels nor responsibilities.
        """
        found = strategy.responsibilities(self, key, data, weight)
        _check_shape(type(strategy).__name__, found, weight.shape[0], self.n_components)
        return self.start(jnp.asarray(found), data, weight, strategy.smooth)


def _check_shape(name: str, found: Any, n: int, k: int) -> None:
    """Raise unless `found` has the type and shape of labels (n,) or responsibilities (n, k): all that tracers show."""
    wanted = f"init={name} must give labels, integers of shape ({n},), or responsibilities, floats of shape ({n}, {k})"
    dtype = getattr(found, "dtype", np.dtype(object))
    integers = jnp.issubdtype(dtype, jnp.integer)
    if not integers and not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{wanted}; got {dtype if hasattr(found, 'dtype') else type(found).__name__}")
    if found.shape != ((n,) if integers else (n, k)):
        raise ValueError(f"{wanted}; got {dtype} of shape {found.shape}")


class Init:
    """A way to start. Subclasses are frozen dataclasses made pytrees by `jaxem.struct`; they give `partition`."""

    #: Whether it is random.
    needs_key: ClassVar[bool] = True
    #: Whether each component also gets one row's worth of all data, so that none is empty or flat.
    smooth: ClassVar[bool] = True

    def partition(self, key: Any, x: Array, weight: Array, k: int) -> Array:
        """(N,) component of each row of the features x (N, D); or (N, K) responsibilities, floats.

        Components are integers in 0..K-1. That is not checked: under jit there are no values to look at.
        """
        raise undefined(self, "partition")

    def responsibilities(self, model: Partitioned, key: Array | None, data: PyTree, weight: Array) -> Array:
        """The same of the data themselves."""
        x = model.features(data)
        return self.partition(key, x, weight.astype(x.dtype), model.n_components)

    def initialize(self, model: Any, key: Array | None, data: PyTree, weight: Array) -> Params:
        """Starting parameters of one restart.

        Raises:
            TypeError: for a model that is not `Startable`.
        """
        self.check_model(model)
        data, weight = jax.tree.map(jnp.asarray, (data, weight))
        return model.initialize_by(self, key, data, weight)

    def check_model(self, model: Any) -> None:
        """Raise TypeError for a model that this cannot start. A strategy with an `initialize` of its own takes any."""
        if type(self).initialize is not Init.initialize or isinstance(model, Startable):
            return
        name, kind = type(self).__name__, type(model).__name__
        if hasattr(model, "initialize_by"):
            raise TypeError(f"init={name}: {kind} defines `initialize_by`; it must inherit jaxem.init.Startable to be asked")
        raise TypeError(
            f"init={name} parts the data among components, from which {kind} cannot start; it takes parameters, an earlier"
            " Result, jaxem.init.Each, or None for a start of its own (a model that strategies can start inherits"
            " jaxem.init.Partitioned or Startable)"
        )


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

    def responsibilities(self, model: Partitioned, key: Array | None, data: PyTree, weight: Array) -> Array:
        assert key is not None
        alpha = jnp.full((model.n_components,), self.concentration, weight.dtype)
        return jax.random.dirichlet(key, alpha, weight.shape)


@struct
class Labels(Init):
    """The M-step from given labels (N,) in 0..K-1 or responsibilities (N, K): every restart starts alike.

    Attributes:
        labels: integers (N,), or floats (N, K) whose rows sum to one.
    """

    labels: Any
    needs_key: ClassVar[bool] = False
    smooth: ClassVar[bool] = False

    def responsibilities(self, model: Partitioned, key: Array | None, data: PyTree, weight: Array) -> Array:
        del model, key, data, weight
        return jnp.asarray(self.labels)

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
    needs_key: ClassVar[bool] = False

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
    needs_key: ClassVar[bool] = False

    def initialize(self, model: Any, key: Array | None, data: PyTree, weight: Array) -> Params:
        """Those of the first restart."""
        del model, key, data
        return jax.tree.map(lambda x: jnp.asarray(x[0], weight.dtype), self.params)

    def __len__(self) -> int:
        """R, to be passed as `n_restarts`."""
        return len(jax.tree.leaves(self.params)[0])
