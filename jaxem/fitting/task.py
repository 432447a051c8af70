"""What `fit` was given, in one piece, on its way to the loop."""

from __future__ import annotations

from typing import Any

from jax import Array
from jax.sharding import Mesh

from jaxem.engine.problem import Algorithm
from jaxem.engine.regularizer import Regularizer
from jaxem.engine.restarts import Rounds
from jaxem.engine.stop import Stop
from jaxem.fitting.layout import Layout
from jaxem.model import Model
from jaxem.numerics.blocks import float_dtype, n_rows
from jaxem.pytree import PyTree, static, struct


@struct
class Options:
    """What is compiled into a fit."""

    n_restarts: int = static()
    block_size: int | None = static()
    rounds: Rounds | None
    regularizer: Regularizer
    unroll: int | None = static(default=None)
    memory_limit: int | None = static(default=None)
    layout: Layout | None = None
    mesh: Mesh | None = static(default=None)


@struct
class Task:
    """What a fit is of.

    Attributes:
        model, data, weight, labels, init, key, algorithm, stop, max_steps: as `fit` takes them.
        options: what is compiled into it.
        volume: what log-densities lost in the coordinates of the computation, () or (N,).
    """

    model: Model
    data: PyTree
    weight: Any
    labels: Any
    init: Any
    key: Array | None
    algorithm: Algorithm
    stop: Stop
    max_steps: Any
    options: Options
    volume: Any = 0.0

    @property
    def n(self) -> int:
        """Rows."""
        return n_rows(self.data)

    @property
    def dtype(self) -> Any:
        """That the computation follows."""
        return float_dtype(self.data)
