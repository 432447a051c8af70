"""What all restarts of one fit share, and the objective that rises."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from jaxem.engine.m_step import log_prior, q_function
from jaxem.engine.regularizer import Regularizer
from jaxem.engine.stop import StopRule
from jaxem.model import Model, undefined
from jaxem.numerics.blocks import Blocks
from jaxem.pytree import PyTree, static, struct
from jaxem.types import Params


@struct
class Problem:
    """All that the restarts of one fit share.

    Attributes:
        model: the model.
        blocks: the data.
        algorithm: how a restart moves.
        stop: when it stops.
        max_steps: EM maps at most, a number.
        offset: what to add to the objective for the data's own units.
        total_weight: of all data, a number.
        regularizer: what restrains the fit beyond the model.
        mesh: devices on which the blocks lie, or None: see `jaxem.engine.mesh`.
        datum_weight: of a typical datum, sum of squares over sum: the unit of whatever is said of one.
        datum_size: how many numbers a datum holds: by so many terms its log-likelihood may be rounded.
    """

    model: Model
    blocks: Blocks
    algorithm: Algorithm
    stop: StopRule
    max_steps: Array
    offset: Array
    total_weight: Array
    regularizer: Regularizer = Regularizer()
    mesh: Mesh | None = static(default=None)
    datum_size: Array | float = 1.0
    datum_weight: Array | float = 1.0

    def constraints(self, params: Params) -> PyTree:
        """Prefix tree of constraints, frozen leaves fixed."""
        return self.regularizer.constraints(self.model.constraints, params)


def objective(problem: Problem, params: Params, loglik: Array) -> Array:
    """Log-likelihood + log-prior - penalty."""
    return loglik + log_prior(problem.model, params) + problem.regularizer.value(params)


@struct
class Point:
    """Parameters with their E-step.

    Attributes:
        params: where the E-step was taken.
        stats: expected sufficient statistics.
        local: per-datum parameters.
        began: the per-datum parameters from which the E-step made these.
        value: objective.
        accepted: whether the restart now stands here; else it stands where it stood before.
        sound: whether the objective is a finite number.
        small: whether a stopping criterion would fire on the change from where the restart stood.
    """

    params: Params
    stats: PyTree
    local: PyTree
    began: PyTree
    value: Array
    accepted: Array
    sound: Array
    small: Array


@struct
class Move:
    """What to evaluate next.

    Attributes:
        params: the parameters.
        trial: False where they are the EM map of where the restart stands, which cannot lower the objective; True
            where they may: then the restart goes there only if the objective rises.
        memory: what the algorithm remembers.
        local: the per-datum parameters from which the E-step is to go on; None: those of where the restart stands.
        goes_on: whether the restart must not stop before; None: it may.
    """

    params: Params
    trial: Array
    memory: PyTree
    local: PyTree = None
    goes_on: Array | None = None


class Algorithm:
    """How a restart moves. Subclasses are frozen dataclasses made pytrees by `jaxem.struct`.

    An algorithm gives `map`, the EM map, and may give `next`, where it wants to go other than there.
    """

    #: Rounding units by which an EM map may seem to lower the objective.
    rounding: ClassVar[int] = 100

    @property
    def hard(self) -> bool:
        """Whether its E-steps maximise over discrete latent values instead of summing them out."""
        return False

    def begin(self, problem: Problem, params: Params) -> PyTree:
        """What to remember before the first move."""
        del problem, params
        return ()

    def map(self, problem: Problem, point: Point, memory: PyTree) -> tuple[Params, PyTree]:
        """The M-step at `point`, and the memory after it."""
        raise undefined(self, "map")

    def next(self, problem: Problem, point: Point, memory: PyTree) -> Move:
        """The next parameters. Default: the EM map."""
        params, memory = self.map(problem, point, memory)
        return Move(params, jnp.array(False), memory)


def expected_objective(problem: Problem, point: Point) -> Callable[[Params], Array]:
    """q with the log-prior, less the penalty: what an M-step at `point` raises."""
    q = q_function(problem.model, point.stats, point.params, problem.blocks, point.local)
    return lambda params: q(params) + problem.regularizer.value(params)
