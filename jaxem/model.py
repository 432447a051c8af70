"""What a model is: the protocol that models and families share, and what a model adds to it.

Axis letters: see `jaxem.types`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.pytree import PyTree
from jaxem.types import Params, Rows


class Natural:
    """What is linear in natural parameters: models, and the families of densities that they are made of.

    The gradient of a log-density in them is the expected sufficient statistics.
    """

    #: Prefix tree of `jaxem.constraints` over the parameters.
    constraints: Any = None
    #: (stats, params) -> params, the closed-form M-step; else None.
    m_step: ClassVar[Any] = None
    #: Whether `m_step` is an exact maximum of q, so that the gradient of q vanishes there.
    m_step_is_maximum: ClassVar[bool] = True
    #: "marginal" where entries of a datum may be NaN, which are summed out; None where they may not.
    missing: str | None = None

    def natural(self, params: Params) -> PyTree:
        """Natural parameters, shared by all data."""
        raise NotImplementedError

    def pack(self, natural: PyTree) -> PyTree:
        """What the density reads: computed once an iteration, outside the scan over blocks."""
        return natural

    def centered(self, params: Params) -> Any:
        """The same with its statistics taken about `params`, where rounding is least. Default: itself."""
        del params
        return self

    def recentered(self, stats: PyTree, params: Params) -> PyTree:
        """Statistics taken about what `centered` was given, as those of `self.centered(params)`: averages over steps need it.

        Raises:
            TypeError: for what has an origin, and does not say how to move it.
        """
        if type(self).centered is not Natural.centered:
            raise TypeError(
                f"{type(self).__name__} takes statistics about parameters (centered), and has no `recentered` to average them"
            )
        return stats

    def variants(self, params: Params) -> tuple[Array | int, tuple[Any, ...]]:
        """Equals in law that differ in arithmetic, cheapest first, and the index of the one safe at `params`."""
        del params
        return 0, (self,)

    def exact(self, params: Params) -> Any:
        """About `params`, in the most accurate form."""
        return self.centered(params).variants(params)[1][-1]

    def pseudo_stats(self, params: Params) -> PyTree | None:
        """Conjugate prior as statistics shaped like `natural`: log-prior = <pseudo_stats, natural>.

        Called on what `centered` returned; `params` give shapes, never values.
        """
        del params
        return None

    def at_floor(self, params: Params) -> PyTree:
        """Bools shaped like `params`: which entries lie at a floor. Default: none."""
        return jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), bool), params)

    def degenerate(self, params: Params) -> Array:
        """Whether anything lies at its floor."""
        return jnp.stack([x.any() for x in jax.tree.leaves(self.at_floor(params))]).any()

    def validate(self, data: Any) -> Any:
        """Check data on the host and convert them to arrays; raises ValueError or TypeError."""
        return data

    def prepared(self, data: PyTree) -> Any:
        """This with what the data share, read from validated data on the host: a table of missing patterns."""
        del data
        return self

    def coordinates(self, data: PyTree, xp: Any, present: Any = None) -> Any:
        """A change of coordinates in which rounding is least (see `jaxem.numerics.affine`), or None.

        Args:
            data: the data.
            xp: numpy or jax.numpy.
            present: (N,) bools, the data that count; None: all.
        """
        del data, xp, present
        return None

    def log_abs_det(self, data: PyTree, affine: Any) -> Array | float:
        """What log-densities lose in new coordinates: a number, or (N,) where data differ in size."""
        if not self.missing:
            return affine.log_abs_det()
        return affine.log_abs_det(~(np if isinstance(data, np.ndarray) else jnp).isnan(data))

    def rescaled(self, affine: Any) -> Any:
        """The same, priors included, in new coordinates."""
        del affine
        return self

    def rescale_params(self, params: Params, affine: Any) -> Params:
        """Parameters in new coordinates."""
        del affine
        return params


class Model(Natural):
    """A latent-variable model. Subclasses are frozen dataclasses made pytrees by `jaxem.struct`.

    Required: `natural`, `log_marginal`, `initialize`. All else has a default. The complete-data
    log-density must be linear in `natural`, with log-normalisers as leaves of their own, so that
    the gradient of `log_marginal` is the expected sufficient statistics.
    """

    #: (params, data) -> rows of local scores, for what has no finite statistics; else None.
    scores: ClassVar[Any] = None
    #: (packed natural, data, previous or None) -> per-datum parameters; else None.
    local: ClassVar[Any] = None
    #: Prefix tree of `jaxem.constraints` over what `local` returns: accelerators then move it along. None: they do not.
    local_constraints: ClassVar[Any] = None
    #: (params, data, weight, rows) -> (loglik, stats), where faster or steadier than the derived one; else None.
    e_step: ClassVar[Any] = None
    #: (params) -> scalar, a prior that no pseudo-statistics express; else None.
    log_prior: ClassVar[Any] = None
    #: Whether `log_marginal` is a lower bound rather than the log-likelihood itself.
    is_bound: ClassVar[bool] = False
    #: Name of the field that counts components whose order means nothing, or None.
    exchangeable: ClassVar[str | None] = None
    #: How many values labels may take, or None where there are none to check.
    n_labels: int | None = None
    #: Whether `m_step` raises q with `log_prior` in it; else Optax does, from where `m_step` leads.
    m_step_has_prior: ClassVar[bool] = False
    #: Key under which data may hold bools, False for entries of a datum that count for nothing; None: there is none.
    mask: ClassVar[str | None] = None

    # --- the density -------------------------------------------------------------------------
    def log_marginal(self, natural: PyTree, data: PyTree, rows: Rows) -> Array:
        """(n,) log p(x_n | natural), or a bound. `natural` is what `pack` made of the natural parameters."""
        raise NotImplementedError

    # --- the M-step --------------------------------------------------------------------------
    @property
    def without_closed_form(self) -> Any:
        """Prefix tree of bools: True for parameters that `m_step` leaves to Optax."""
        return self.m_step is None

    # --- the boundary of fit -----------------------------------------------------------------
    def template(self, data: PyTree) -> Params | None:
        """Valid parameters of the shapes that `data` call for, against which `init` is checked; None: no check."""
        del data
        return None

    def rescale_data(self, data: PyTree, affine: Any) -> PyTree:
        """Data in new coordinates, in their own dtype."""
        return affine.data(data)

    #: Whether `initialize` is random.
    needs_key: ClassVar[bool] = True

    def initialize(self, key: Array | None, data: PyTree, weight: Array) -> Params:
        """Starting parameters of one restart."""
        raise NotImplementedError

    def initialize_by(self, strategy: Any, key: Array | None, data: PyTree, weight: Array) -> Params:
        """Starting parameters of one restart by a strategy of `jaxem.init`."""
        return strategy.initialize(self, key, data, weight)

    # --- after the fit -----------------------------------------------------------------------
    def log_prob(self, params: Params, data: PyTree) -> Array:
        """(N,) log p(x_n | params), or the bound."""
        model = self.exact(params)
        packed = model.pack(model.natural(params))
        local = model.local(packed, data, None) if model.local else None
        scores = model.scores(params, data) if model.scores else None
        return model.log_marginal(packed, data, Rows(local=local, scores=scores))

    def label_shape(self, data: PyTree) -> tuple[int, ...]:
        """Shape of labels for validated data: (N,)."""
        return jax.tree.leaves(data)[0].shape[:1]

    def impossible(self, params: Params, data: PyTree) -> str | None:
        """Where in the data the model gives probability zero, in words, beyond the row; None: nothing to add."""
        del params, data
        return None

    def n_free_params(self, data: PyTree) -> int:
        """Number of free parameters, as AIC and BIC count them."""
        raise NotImplementedError

    def n_observations(self, data: PyTree) -> Any:
        """How many observations each datum holds, as BIC counts them: one, or (N,) numbers where data are sequences."""
        del data
        return 1

    def sample(self, key: Array, params: Params, n: int) -> PyTree:
        """n data drawn from the model, in the shape of the data."""
        raise NotImplementedError

    def sample_like(self, key: Array, params: Params, data: PyTree) -> PyTree:
        """As many data drawn from the model as `data` holds, each of the size of the one in its place."""
        return self.sample(key, params, jax.tree.leaves(data)[0].shape[0])
