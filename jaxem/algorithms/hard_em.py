"""EM with hard assignments."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import jax

from jaxem.engine.e_step import e_step
from jaxem.engine.em import EM
from jaxem.engine.problem import Problem
from jaxem.numerics.logs import hard_latents
from jaxem.pytree import PyTree, struct
from jaxem.types import Params


@struct
class HardEM(EM):
    """EM with hard assignments: each datum belongs wholly to its most probable latent value.

    What rises is the classification log-likelihood, sum of max over z of log p(x, z) (Celeux and Govaert 1992,
    CEM; for chains Viterbi training, Juang and Rabiner 1990), and it is what `loglik` and `objective` report.
    For models whose discrete latent values are summed out by `jaxem.latents`.
    """

    def begin(self, problem: Problem, params: Params) -> PyTree:
        """Nothing to remember.

        Raises:
            TypeError: for a model without discrete latent values.
        """
        with hard_latents() as used:
            jax.eval_shape(lambda p: e_step(problem.model, p, problem.blocks).loglik, params)
        if not used:
            kind = type(problem.model).__name__
            raise TypeError(f"HardEM needs a model with discrete latent values summed out by jaxem.latents; got {kind}")
        return ()

    def scope(self) -> AbstractContextManager[Any]:
        return hard_latents()
