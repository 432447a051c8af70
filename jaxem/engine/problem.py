"""What all lanes of one fit share, and the objective that rises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jax import Array
from jax.sharding import Mesh

from jaxem.blocks import Blocks
from jaxem.engine.m_step import log_prior
from jaxem.engine.regularizer import Regularizer
from jaxem.engine.stop import Stop
from jaxem.types import Model, Params, static, struct

if TYPE_CHECKING:
    from jaxem.engine.algorithm import Algorithm

PyTree = Any


@struct
class Problem:
    """All that the lanes of one fit share.

    Attributes:
        model: the model.
        blocks: the data.
        algorithm: how a lane moves.
        stop: when it stops.
        max_steps: EM maps at most, a number.
        offset: what to add to the objective for the data's own units.
        total_weight: of all data, a number.
        regularizer: what restrains the fit beyond the model.
        mesh: devices on which the blocks lie, or None: see `jaxem.engine.mesh`.
    """

    model: Model
    blocks: Blocks
    algorithm: Algorithm
    stop: Stop
    max_steps: Array
    offset: Array
    total_weight: Array
    regularizer: Regularizer = Regularizer()
    mesh: Mesh | None = static(default=None)

    def constraints(self, params: Params) -> PyTree:
        """Prefix tree of constraints, frozen leaves fixed."""
        return self.regularizer.constraints(self.model.constraints, params)


def objective(problem: Problem, params: Params, loglik: Array) -> Array:
    """Log-likelihood + log-prior - penalty."""
    return loglik + log_prior(problem.model, params) + problem.regularizer.value(params)
