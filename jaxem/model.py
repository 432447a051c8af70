"""What a model is: the protocol that models and families share, and what a model adds to it.

Axis letters: see `jaxem.types`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.data import boundary
from jaxem.data.validation import is_traced
from jaxem.numerics.switches import own_switches
from jaxem.pytree import PyTree
from jaxem.types import Params, Rows

#: Hooks that are none any more, and what says the same today.
RENAMED = {
    "at": "`centered`",
    "moved": "`recentered`",
    "forms": "`variants`",
    "blank": "`template`",
    "changed": "`rescaled`",
    "change_params": "`rescale_params`",
    "change_data": "a method `rescaled(affine)` of the class of the data",
    "label_shape": "a property `label_shape` of the class of the data",
    "log_volume": "`log_abs_det`",
    "ascended": "`without_closed_form`",
    "latent_pseudo_stats": "`own_pseudo_stats`",
    "degenerate": "`at_floor`",
}


def undefined(owner: Any, hook: str) -> NotImplementedError:
    """What to raise for a required hook that the class of `owner` leaves out."""
    return NotImplementedError(f"{type(owner).__name__} must define `{hook}`")


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
    #: (stats, params, new) -> params: `new`, what the M-step made of both, with entries towards which EM creeps further
    #: ahead, by Fisher scoring on the observed likelihood. It may lower that: see `jaxem.engine.em`. None: there are none.
    scoring_step: ClassVar[Any] = None
    #: (stats, params) -> bool, whether any component owes its likelihood to chance: too few rows, or much thinner than the
    #: others on not many (Wilson and Zhu 2020). A choice among models passes over such restarts. None: there is nothing to ask.
    spurious: ClassVar[Any] = None
    #: "marginal" where entries of a datum may be NaN, which are summed out; None where they may not.
    missing: str | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse hooks that nothing would call.

        Raises:
            TypeError: for whatever bears the name of such a hook: a method, a property, a value, a field; inherited too.
        """
        super().__init_subclass__(**kwargs)
        fields = vars(cls).get("__annotations__", {})
        for name in RENAMED:
            if name in fields or getattr(cls, name, None) is not getattr(Natural, name, None):
                raise TypeError(f"{cls.__name__} defines `{name}`, which nothing calls; define {RENAMED[name]} instead")

    def natural(self, params: Params) -> PyTree:
        """Natural parameters, shared by all data."""
        raise undefined(self, "natural")

    def pseudo_stats(self, params: Params) -> PyTree | None:
        """Conjugate prior as statistics shaped like `natural`: log-prior = <pseudo_stats, natural>.

        Called on what `centered` returned; `params` give shapes, never values.
        """
        del params
        return None

    def at_floor(self, params: Params) -> PyTree:
        """Bools shaped like `params`: which entries lie at a floor, below which the likelihood has no bound. Default: none."""
        return jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), bool), params)

    def at_limit(self, params: Params) -> PyTree:
        """Bools shaped like `params`: which lie where the likelihood stays bounded and has no inner maximum. Default: none.

        A limit is a model of its own, such as Poisson for a negative binomial, and a place to converge to.
        """
        return jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), bool), params)

    def validate(self, data: Any) -> Any:
        """Check the values of data on the host and convert them to arrays; raises ValueError or TypeError.

        Types, shapes and support, of any number of data: every public method asks it. What a fit needs is `check_fit`'s.
        """
        return data

    def check_fit(self, data: PyTree) -> None:
        """Raise ValueError for settings, or validated data, that no fit could use: too few of them."""
        del data

    # --- arithmetic: where rounding is least, and what is computed once ----------------------
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

    def floored(self, data: PyTree, weight: Array | None) -> Any:
        """This with the floors that are None, which leaves them to the data, as numbers; called once a fit."""
        del data, weight
        return self

    def prepared(self, data: PyTree) -> Any:
        """This with what the data share, read from validated data on the host: a table of missing patterns."""
        del data
        return self

    # --- coordinates in which to compute -----------------------------------------------------
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

    # --- what follows ------------------------------------------------------------------------
    def exact(self, params: Params) -> Any:
        """About `params`, in the most accurate form."""
        return self.centered(params).variants(params)[1][-1]

    def degenerate(self, params: Params) -> Array:
        """Whether anything lies at its floor. Follows from `at_floor`; no subclass may define it."""
        return jnp.array([x.any() for x in jax.tree.leaves(self.at_floor(params))], bool).any()


def _on_arrays(initialize: Callable[..., Params]) -> Callable[..., Params]:
    """`initialize` of NumPy arrays too: outside jit it would index them by what is traced."""

    @functools.wraps(initialize)
    def converted(self: Any, key: Array | None, data: PyTree, weight: Array) -> Params:
        return initialize(self, key, *jax.tree.map(jnp.asarray, (data, weight)))

    return converted


def one_program(method: Callable[..., Any]) -> Callable[..., Any]:
    """A model's `method`, compiled where it is called plainly: not operation by operation. Arguments that are `int` are sizes.

    A model that is no pytree runs as it is: jit would take it for an array.
    """
    sizes = tuple(name for name, given in inspect.signature(method).parameters.items() if given.annotation == "int")
    compiled = jax.jit(method, static_argnames=sizes)

    @functools.wraps(method)
    def called(self: Any, *args: Any, **options: Any) -> Any:
        if is_traced(self, args, options) or jax.tree_util.all_leaves((self,)):
            return method(self, *args, **options)
        with own_switches():
            return compiled(self, *args, **options)

    return called


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
    #: (params, data) -> what the data say of the latent values; None: there is nothing to give. Of discrete ones their
    #: probabilities, along the last axis, which sum to one; so do expected shares. Of continuous ones a struct of `mean`
    #: and `variance` (`jaxem.Moments`) or, of several together, `covariance` (`Factors`, `GaussianPath`). NaN for data of
    #: probability zero, which an error names outside jit.
    posterior: ClassVar[Any] = None
    #: Whether `initialize` is random.
    needs_key: ClassVar[bool] = True
    #: Whether what log-densities lose in new coordinates is a part of the objective to which tolerances are relative: units
    #: are, constants of the data are not.
    offset_counts: ClassVar[bool] = True
    #: Name of the field that counts components whose order means nothing, or None.
    exchangeable: ClassVar[str | None] = None
    #: How many values labels may take, or None where there are none to check.
    n_labels: int | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "initialize" in vars(cls):
            cls.initialize = _on_arrays(cls.initialize)
        boundary.bind(cls)

    def log_marginal(self, natural: PyTree, data: PyTree, rows: Rows) -> Array:
        """(n,) log p(x_n | natural), or a bound. `natural` is what `pack` made of the natural parameters."""
        raise undefined(self, "log_marginal")

    def initialize(self, key: Array | None, data: PyTree, weight: Array) -> Params:
        """Starting parameters of one restart from data as `validate` leaves them."""
        raise undefined(self, "initialize")

    def template(self, data: PyTree) -> Params | None:
        """Valid parameters of the shapes that `data` call for, against which `init` is checked; None: no check."""
        del data
        return None

    @property
    def without_closed_form(self) -> Any:
        """Prefix tree of bools: True for parameters that `m_step` leaves to Optax."""
        return self.m_step is None

    # --- after the fit -----------------------------------------------------------------------
    @one_program
    def log_prob(self, params: Params, data: PyTree) -> Array:
        """(N,) log p(x_n | params), or the bound."""
        model = self.exact(params)
        packed = model.pack(model.natural(params))
        local = model.local(packed, data, None) if model.local else None
        scores = model.scores(params, data) if model.scores else None
        return model.log_marginal(packed, data, Rows(local=local, scores=scores))

    def check_columns(self, params: Params, data: PyTree) -> None:
        """Raise ValueError where `data` do not go with `params`, by their shapes alone. Default: by those of `template`."""
        boundary.check_columns(self, params, data)

    def n_free_params(self, data: PyTree) -> int:
        """Number of free parameters, as AIC and BIC count them."""
        raise undefined(self, "n_free_params")

    def sample(self, key: Array, params: Params, n: int) -> PyTree:
        """n data drawn from the model, in the shape of the data."""
        raise undefined(self, "sample")

    # --- rare: what few models need ----------------------------------------------------------
    #: (params, data, weight, rows) -> (loglik, stats), where faster or steadier than the derived one; else None.
    e_step: ClassVar[Any] = None
    #: (params) -> scalar, a prior that no pseudo-statistics express; else None.
    log_prior: ClassVar[Any] = None
    #: Whether `m_step` raises q with `log_prior` in it; else Optax does, from where `m_step` leads.
    m_step_has_prior: ClassVar[bool] = False
    #: Whether `log_marginal` is a lower bound rather than the log-likelihood itself.
    is_bound: ClassVar[bool] = False
    #: Prefix tree of `jaxem.constraints` over what `local` returns: accelerators then move it along. None: they do not.
    local_constraints: ClassVar[Any] = None
    #: Key under which data may hold bools, False for entries of a datum that count for nothing; None: there is none.
    mask: ClassVar[str | None] = None

    def impossible(self, params: Params, data: PyTree) -> str | None:
        """Where in the data the model gives probability zero, in words, beyond the row; None: nothing to add."""
        del params, data
        return None

    def canonical(self, params: Params, like: Params | None = None) -> Params:
        """Of all parameters that give the same density, the ones that errors are told of: factors in a stated rotation, say.

        Where there are several, such as signs, the nearest to `like`.
        """
        del like
        return params

    def n_observations(self, data: PyTree) -> Any:
        """How many observations each datum holds, as BIC counts them: one, or (N,) numbers where data are sequences."""
        del data
        return 1

    def sample_like(self, key: Array, params: Params, data: PyTree) -> PyTree:
        """As many data drawn from the model as `data` holds, each of the size of the one in its place."""
        return self.sample(key, params, jax.tree.leaves(data)[0].shape[0])
