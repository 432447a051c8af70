"""What all lanes of one fit share, and the objective that rises."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from jax import Array

from jaxem.blocks import Blocks
from jaxem.engine.m_step import log_prior
from jaxem.engine.stop import Stop
from jaxem.types import Model, Params, static, struct

if TYPE_CHECKING:
    from jaxem.engine.algorithm import Algorithm


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
        penalty: params -> scalar taken off the objective, or None.
    """

    model: Model
    blocks: Blocks
    algorithm: Algorithm
    stop: Stop
    max_steps: Array
    offset: Array
    penalty: Callable[[Params], Array] | None = static(default=None)


def objective(problem: Problem, params: Params, loglik: Array) -> Array:
    """Log-likelihood + log-prior - penalty."""
    value = loglik + log_prior(problem.model, params)
    return value - problem.penalty(params) if problem.penalty else value
