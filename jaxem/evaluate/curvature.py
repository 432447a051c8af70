"""Second derivatives of the log-likelihood in free coordinates, summed over blocks: observed, complete and missing.

Statistics are taken about the parameters at which the derivatives are wanted, and stay so while these vary.
A log-prior, where the model has one, is part of the complete and of the observed information.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jaxem import constraints as sets
from jaxem.engine.e_step import e_step, weighted_total
from jaxem.engine.m_step import q_function
from jaxem.model import Model
from jaxem.numerics.blocks import Blocks, fold
from jaxem.numerics.trees import inner
from jaxem.pytree import PyTree
from jaxem.types import Params, Rows


class Curvature:
    """The log-likelihood about one point of a model.

    Attributes:
        model: the model about `params`, in its most accurate variant.
        vector: (P,) free coordinates of `params`.
        back: the way from free coordinates to parameters.
    """

    def __init__(self, model: Model, params: Params, blocks: Blocks):
        self.given, self.params, self.blocks = model, params, blocks
        self.model = model.exact(params)
        self.vector, self.back = sets.chart(model.constraints, params)

    # --- the log-marginal of a block, by what it depends on ----------------------------------
    def _inputs(self, v: Array, block: Blocks) -> tuple[PyTree, PyTree]:
        """Natural parameters and local scores."""
        theta = self.back(v)
        return self.model.natural(theta), self.model.scores(theta, block.data) if self.model.scores else None

    def _rows(self, inputs: tuple[PyTree, PyTree], block: Blocks) -> Array:
        natural, scores = inputs
        return self.model.log_marginal(self.model.pack(natural), block.data, Rows(scores=scores, labels=block.labels))

    def _total(self, inputs: tuple[PyTree, PyTree], block: Blocks) -> Array:
        return weighted_total(self._rows(inputs, block), block.weight)

    def _log_prior(self, v: Array) -> Array | float:
        pseudo = self.model.pseudo_stats(self.params)
        value = 0.0 if pseudo is None else inner(pseudo, self.model.natural(self.back(v)))
        return value + (self.model.log_prior(self.back(v)) if self.model.log_prior else 0.0)

    # --- the matrices, each (P, P) -----------------------------------------------------------
    def score(self) -> Array:
        """(P,) gradient of the log-likelihood and log-prior."""
        gradient = fold(lambda block: jax.grad(lambda v: self._total(self._inputs(v, block), block))(self.vector), self.blocks)
        return gradient + jax.grad(lambda v: self._log_prior(v) + 0 * v.sum())(self.vector)

    def observed(self) -> Array:
        """Minus the Hessian of the log-likelihood and log-prior."""
        term = lambda block: _hessian(lambda v: self._total(self._inputs(v, block), block), self.vector)  # noqa: E731
        prior = _hessian(lambda v: self._log_prior(v) + 0 * v.sum(), self.vector)
        return -_symmetric(fold(term, self.blocks) + prior)

    def complete(self) -> Array:
        """Minus the Hessian of q, the expected complete-data log-likelihood and log-prior."""
        stats = e_step(self.given, self.params, self.blocks).stats
        q = q_function(self.given, stats, self.params, self.blocks, None)
        return -_symmetric(_hessian(lambda v: q(self.back(v)), self.vector))

    def missing(self) -> Array:
        """Conditional covariance of the complete-data score (Louis 1982, equation 3.2).

        It is the curvature of the log-marginal in natural parameters and local scores alone: along the
        straight lines that touch the model.
        """

        def term(block: Blocks) -> Array:
            start, push = jax.linearize(lambda v: self._inputs(v, block), self.vector)
            line = lambda v: jax.tree.map(jnp.add, start, push(v - self.vector))  # noqa: E731
            return _hessian(lambda v: self._total(line(v), block), self.vector)

        return _symmetric(fold(term, self.blocks))

    def cross(self) -> Array:
        """Mixed second derivative of Q(theta' | theta), by way of the statistics (Oakes 1999, equation 1)."""

        def term(block: Blocks) -> Array:
            _, pull = jax.vjp(lambda v: self._inputs(v, block), self.vector)
            return jax.jacfwd(lambda v: pull(self._statistics(v, block))[0])(self.vector)

        return _symmetric(fold(term, self.blocks))

    def _statistics(self, v: Array, block: Blocks) -> tuple[PyTree, PyTree]:
        """What an E-step at v expects: statistics, by the model's own E-step where it has one, and posterior."""
        natural, scores = inputs = self._inputs(v, block)
        if self.model.e_step is None:
            return jax.grad(self._total)(inputs, block)
        _, stats = self.model.e_step(self.back(v), block.data, block.weight, Rows(labels=block.labels))
        posterior = None if scores is None else jax.grad(lambda s: self._total((natural, s), block))(scores)
        return stats, posterior

    def outer(self) -> Array:
        """Weighted sum of outer products of the scores of single data, likelihood only (Berndt et al. 1974)."""

        def term(block: Blocks) -> Array:
            scores = jax.jacfwd(lambda v: self._rows(self._inputs(v, block), block))(self.vector)
            present = block.weight > 0
            scores = jnp.where(present[:, None], scores, 0)
            return jnp.einsum("np,n,nq->pq", scores, jnp.where(present, block.weight, 0), scores)

        return _symmetric(fold(term, self.blocks))


def _hessian(f: Callable[[Array], Array], at: Array) -> Array:
    """Forward over reverse: one backward pass for each coordinate, all of them side by side."""
    return jax.jacfwd(jax.grad(f))(at)


def _symmetric(matrix: Array) -> Array:
    return (matrix + matrix.T) / 2
