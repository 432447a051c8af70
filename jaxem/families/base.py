"""What a family is: p(x | component), with K components side by side."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.data.sequences import Sequences
from jaxem.model import Natural, undefined
from jaxem.numerics.blocks import by_row
from jaxem.pytree import PyTree
from jaxem.types import Params

#: A component thinner than THIN times the pooled covariance, on fewer than FEW times the rows that its place and spread
#: need, is such as chance finds: benchmarks/results/spurious.md.
THIN, FEW = 0.01, 5


def by_chance(count: Array, thin: Array | bool, needed: int) -> Array:
    """Whether any component owes its likelihood to chance.

    Args:
        count: (K,) effective rows.
        thin: (K,) whether a variance, in any direction, is less than THIN times the pooled one.
        needed: rows without which the spread of a component is no estimate.
    """
    return ((count < needed) | (thin & (count < FEW * needed))).any()


class Family(Natural):
    """A family of densities. Subclasses are frozen dataclasses made pytrees by `jaxem.struct`.

    Parameters and natural parameters are dicts whose leaves lead with K, unless components share them.
    """

    #: (params, rows) -> (n, K) log-densities, for what has no finite statistics; else None.
    log_density: ClassVar[Any] = None

    def scores(self, natural: PyTree, data: Array) -> Array:
        """(K, n) log p(x_n | component k) from packed natural parameters; components first, data last."""
        raise undefined(self, "scores")

    def hard_scores(self, natural: PyTree, data: Array) -> Array:
        """As `scores`, with latent values of the family's own at their most probable. Default: it has none."""
        return self.scores(natural, data)

    def template(self, data: Array, n_components: int) -> Params:
        """Valid parameters that know nothing, of the shapes that `data` call for."""
        raise undefined(self, "template")

    def start(self, stats: PyTree, template: Params) -> Params:
        """Parameters from first statistics. Default: the M-step.

        Raises:
            TypeError: for a family that has neither.
        """
        if self.m_step is None:
            raise TypeError(f"{type(self).__name__} tells no start: define `start` or `m_step`, or give init=params")
        return self.m_step(stats, template)

    def own_start(self, mixture: Any, strategy: Any, key: Array | None, data: PyTree, weight: Array) -> Params | None:
        """Starting parameters of a mixture over this family, where they follow from no rows' components; None: they do.

        Args:
            mixture: a `Mixture` over this family.
            strategy: of `jaxem.init`.
            key: random key, or None.
            data: the rows.
            weight: (N,).
        """
        del mixture, strategy, key, data, weight
        return None

    def features(self, data: Array) -> Array:
        """(N, D) real features in which initialisers measure distance; scaled to unit variance by default."""
        x = data.reshape(data.shape[0], -1).astype(jnp.result_type(float, data.dtype) if _is_integer(data) else data.dtype)
        spread = x.std(0)
        return (x - x.mean(0)) / jnp.where(spread > 0, spread, 1)

    def completed(self, data: Array) -> tuple[Family, Array]:
        """This family for rows without gaps, and such rows, from which starting values are taken."""
        return self, data

    def n_free_params(self, n_components: int, data: Array) -> int:
        """Free parameters of all components."""
        raise undefined(self, "n_free_params")

    def impute(self, params: Params, data: Array) -> Array:
        """(K, n, D) rows in which each component put the conditional means of what is missing."""
        raise undefined(self, "impute")

    def sample(self, key: Array, params: Params, component: Array) -> Array:
        """One datum for each entry of `component` (n,)."""
        raise undefined(self, "sample")

    def sample_like(self, key: Array, params: Params, component: Array, data: PyTree) -> PyTree:
        """As `sample`, given what rows of `data` hold that the family does not draw: inputs. Default: nothing."""
        del data
        return self.sample(key, params, component)

    # --- for chains --------------------------------------------------------------------------
    #: Steps at the start of a sequence that are taken as given.
    n_given: int = 0
    #: What stands for a value that is not there: -1 for codes and counts.
    absent: ClassVar[float] = math.nan

    def windows(self, data: Sequences) -> Sequences:
        """What the family sees of sequences: a step as it is, or with its past."""
        return data

    def series(self, data: Sequences) -> Sequences:
        """Sequences from what may be their windows."""
        return data

    def last_given(self, key: Array, params: Params, data: Sequences, states: Array | None) -> Array | None:
        """(n, P) the last P steps of each of the series, in order, for what looks back; None for what does not.

        Args:
            key: random key; steps that are missing are drawn given all that is seen.
            params: the family's parameters.
            data: series.
            states: (n, T - P) of their steps from step P on; None where none of the last P is missing.
        """
        del key, params, data, states
        return None

    def sample_path(self, key: Array, params: Params, states: Array, given: Array | None = None, like: Any = None) -> PyTree:
        """(n, P + T, ...) one series along each path of `states` (n, T), P = `n_given`.

        Args:
            key: random key.
            params: the family's parameters.
            states: (n, T).
            given: (n, P) the steps before; None: standard normal.
            like: rows (n, T, ...) of which `sample_like` reads what it does not draw, or None.
        """
        del given
        rows = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), like)
        component = states.reshape(-1)
        x = self.sample(key, params, component) if like is None else self.sample_like(key, params, component, rows)
        return jax.tree.map(lambda leaf: leaf.reshape(*states.shape, *leaf.shape[1:]), x)


def _is_integer(x: Any) -> bool:
    return np.issubdtype(np.dtype(x.dtype), np.integer)


def columns(data: Array) -> Array:
    """(D, n) view of (n, D) or (n,) data: data along the last axis."""
    return by_row(data).T
