"""What a family is: p(x | component), with K components side by side."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.sequences import Sequences
from jaxem.types import Params

PyTree = Any


class Family:
    """A family of densities. Subclasses are frozen dataclasses made pytrees by `jaxem.struct`.

    Parameters and natural parameters are dicts whose leaves lead with K, unless components share them.
    """

    #: Prefix tree of `jaxem.constraints` over the parameters.
    constraints: Any = None
    #: Closed-form M-step (stats, params) -> params; None leaves the family to Optax.
    m_step: ClassVar[Any] = None
    #: Whether `m_step` is an exact maximum of q.
    m_step_is_maximum: ClassVar[bool] = True
    #: (params, rows) -> (n, K) log-densities, for what has no finite statistics; else None.
    log_density: ClassVar[Any] = None
    #: "marginal" where rows may lack entries (NaN), which are summed out; None where they may not.
    missing: str | None = None

    def natural(self, params: Params) -> PyTree:
        """Natural parameters; the log-density is linear in them."""
        raise NotImplementedError

    def scores(self, natural: PyTree, data: Array) -> Array:
        """(K, n) log p(x_n | component k) from packed natural parameters; components first, data last."""
        raise NotImplementedError

    def blank(self, data: Array, n_components: int) -> Params:
        """Valid parameters that know nothing, of the shapes that `data` call for."""
        raise NotImplementedError

    def start(self, stats: PyTree, blank: Params) -> Params:
        """Parameters from first statistics. Default: the M-step."""
        return self.m_step(stats, blank)

    def pack(self, natural: PyTree) -> PyTree:
        """See `Model.pack`."""
        return natural

    def at(self, params: Params) -> Family:
        """See `Model.at`."""
        del params
        return self

    def moved(self, stats: PyTree, params: Params) -> PyTree:
        """See `Model.moved`."""
        if type(self).at is not Family.at:
            raise TypeError(f"{type(self).__name__} takes statistics about parameters (at), and has no `moved` to average them")
        return stats

    def forms(self, params: Params) -> tuple[Array | int, tuple[Family, ...]]:
        """See `Model.forms`."""
        del params
        return 0, (self,)

    def pseudo_stats(self, blank: Params) -> PyTree | None:
        """See `Model.pseudo_stats`; `blank` gives the shapes."""
        del blank
        return None

    def degenerate(self, params: Params) -> Array | bool:
        """See `Model.degenerate`."""
        del params
        return False

    def at_floor(self, params: Params) -> PyTree:
        """See `Model.at_floor`."""
        flag = jnp.asarray(self.degenerate(params))
        return jax.tree.map(lambda x: jnp.broadcast_to(flag, jnp.shape(x)), params)

    def validate(self, data: Any) -> Any:
        """See `Model.validate`."""
        raise NotImplementedError

    def features(self, data: Array) -> Array:
        """(N, D) real features in which initialisers measure distance; scaled to unit variance by default."""
        x = data.reshape(data.shape[0], -1).astype(jnp.result_type(float, data.dtype) if _is_integer(data) else data.dtype)
        spread = x.std(0)
        return (x - x.mean(0)) / jnp.where(spread > 0, spread, 1)

    def completed(self, data: Array) -> tuple[Family, Array]:
        """This family for rows without gaps, and such rows, from which starting values are taken."""
        return self, data

    def prepared(self, data: Any) -> Family:
        """See `Model.prepared`."""
        del data
        return self

    def coordinates(self, data: Any, xp: Any, present: Any = None) -> Any:
        """See `Model.coordinates`."""
        del data, xp, present
        return None

    def log_volume(self, data: Any, affine: Any) -> Any:
        """See `Model.log_volume`."""
        del data
        return affine.log_volume()

    def changed(self, affine: Any) -> Family:
        """This family, priors included, in new coordinates."""
        del affine
        return self

    def change_params(self, params: Params, affine: Any) -> Params:
        """Parameters in new coordinates."""
        del affine
        return params

    def n_free_params(self, n_components: int, data: Array) -> int:
        """Free parameters of all components."""
        raise NotImplementedError

    def impute(self, params: Params, data: Array) -> Array:
        """(K, n, D) rows in which each component put the conditional means of what is missing."""
        raise NotImplementedError

    def sample(self, key: Array, params: Params, component: Array) -> Array:
        """One datum for each entry of `component` (n,)."""
        raise NotImplementedError

    # --- for chains --------------------------------------------------------------------------
    #: Steps at the start of a sequence that are taken as given.
    n_given: int = 0

    def windows(self, data: Sequences) -> Sequences:
        """What the family sees of sequences: a step as it is, or with its past."""
        return data

    def sample_path(self, key: Array, params: Params, states: Array, past: Any = None) -> Array:
        """(n, T, ...) one series along each path of `states` (n, T); `past`: windows that came before, for what looks back."""
        del past
        x = self.sample(key, params, states.reshape(-1))
        return jax.tree.map(lambda leaf: leaf.reshape(*states.shape, *leaf.shape[1:]), x)


def _is_integer(x: Any) -> bool:
    return np.issubdtype(np.dtype(x.dtype), np.integer)


def columns(data: Array) -> Array:
    """(D, n) view of (n, D) or (n,) data: data along the last axis."""
    return data.reshape(data.shape[0], -1).T
