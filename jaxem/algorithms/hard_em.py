"""EM with hard assignments."""

from __future__ import annotations

import dataclasses

import jax

from jaxem.engine.e_step import e_step
from jaxem.engine.em import EM
from jaxem.engine.problem import Problem
from jaxem.numerics.blocks import equations
from jaxem.pytree import PyTree, struct
from jaxem.types import Params


@struct
class HardEM(EM):
    """EM with hard assignments: each datum belongs wholly to its most probable latent value.

    What rises is the classification log-likelihood, sum of max over z of log p(x, z) (Celeux and Govaert 1992,
    CEM; for chains Viterbi training, Juang and Rabiner 1990), and it is what `loglik` and `objective` report.
    For models that hand `Rows.hard` to the functions of `jaxem.latents` which sum out their discrete latent values.
    """

    @property
    def hard(self) -> bool:
        return True

    def begin(self, problem: Problem, params: Params) -> PyTree:
        """Nothing to remember.

        Raises:
            TypeError: for a model without discrete latent values, or that does not hand `rows.hard` on.
        """

        def operations(hard: bool) -> list[str]:
            blocks = dataclasses.replace(problem.blocks, hard=hard)
            loglik = jax.make_jaxpr(lambda p: e_step(problem.model, p, blocks).loglik)(params)
            return [eqn.primitive.name for eqn in equations(loglik.jaxpr)]

        if operations(hard=True) == operations(hard=False):
            kind = type(problem.model).__name__
            raise TypeError(
                "HardEM needs a model with discrete latent values that hands `rows.hard` (for log_marginal: a keyword"
                f" `hard`) on to jaxem.latents; got {kind}"
            )
        return ()
