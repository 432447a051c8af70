"""What a fit was given, in one piece, and what it becomes: restarts at their starts."""

from __future__ import annotations

import dataclasses
from typing import Any

from jax import Array
from jax.sharding import Mesh

from jaxem.data.validation import inside_jit, is_traced
from jaxem.engine.problem import Algorithm, Problem
from jaxem.engine.regularizer import Regularizer
from jaxem.engine.restarts import Queue, Rounds
from jaxem.engine.stop import StopRule
from jaxem.fitting.layout import Layout
from jaxem.model import Model
from jaxem.numerics.blocks import float_dtype, n_rows
from jaxem.pytree import PyTree, static, struct


@struct
class Options:
    """What is compiled into a fit.

    Attributes:
        n_restarts, block_size, rounds, unroll, mesh: as `fit` takes them.
        regularizer: its penalty, log_prior, frozen and tied in one piece.
        memory_limit: bytes that it may take; None: all that is available.
        layout: how its work is cut up; None: still to be chosen.
    """

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
        model, data, weight, labels, init, key, algorithm, max_steps: as `fit` takes them.
        stop: when a restart stops.
        options: what is compiled into it.
        standardize: whether coordinates are still to be chosen.
        log_abs_det: what log-densities lost in the coordinates of the computation, () or (N,).
        guard: whether restarts with a spurious component are passed over.
    """

    model: Model
    data: PyTree
    weight: Any
    labels: Any
    init: Any
    key: Array | None
    algorithm: Algorithm
    stop: StopRule
    max_steps: Any
    options: Options
    standardize: bool = static(default=False)
    log_abs_det: Any = 0.0
    guard: bool = static(default=False)

    @property
    def n(self) -> int:
        """Rows."""
        return n_rows(self.data)

    @property
    def dtype(self) -> Any:
        """That the computation follows."""
        return float_dtype(self.data)

    @property
    def traced(self) -> bool:
        """Whether the fit is part of a jitted or vmapped function."""
        return is_traced(self) or inside_jit()


@dataclasses.dataclass(frozen=True)
class Race:
    """A task whose restarts stand at their starts.

    Attributes:
        problem: what they share.
        queue: the restarts.
        layout: how the work is cut up.
        options: what was compiled.
        n: rows.
        guard: whether restarts with a spurious component are passed over.
    """

    problem: Problem
    queue: Queue
    layout: Layout
    options: Options
    n: int
    guard: bool = False
