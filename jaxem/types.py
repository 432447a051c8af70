"""What a model is, what a fit returns, and the words for how it ended.

Axis letters, used in every docstring: N data, D features, K components or states, R restarts,
T time, B sequences, V vocabulary or categories.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any, ClassVar, TypeVar, dataclass_transform

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import Array

PyTree = Any
Params = Any


def static(**kwargs: Any) -> Any:
    """A dataclass field that is structure, hashed by value, rather than a number."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


#: jaxem's own structs by name: all that a file may be rebuilt from.
STRUCTS: dict[str, type] = {}


def struct_name(cls: type) -> str:
    """The name by which `STRUCTS` knows a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


_Class = TypeVar("_Class", bound=type)


@dataclass_transform(frozen_default=True, field_specifiers=(static,))
def struct(cls: _Class) -> _Class:
    """Make `cls` a frozen dataclass and a pytree: fields made by `static` are structure, the others leaves.

    Not `jax.tree_util.register_dataclass`: there the structures of two classes with the same fields compare
    equal (jax 0.10), and a jitted function may run the program compiled for the one on the other.
    """
    cls = dataclasses.dataclass(frozen=True)(cls)
    fields = [f for f in dataclasses.fields(cls) if f.init]
    meta = tuple(f.name for f in fields if f.metadata.get("static"))
    data = tuple(f.name for f in fields if not f.metadata.get("static"))
    keys = tuple(jax.tree_util.GetAttrKey(name) for name in data)

    def flatten(x: Any) -> tuple[tuple[Any, ...], Any]:
        return tuple(getattr(x, name) for name in data), (cls, *(getattr(x, name) for name in meta))

    def flatten_with_keys(x: Any) -> tuple[tuple[Any, ...], Any]:
        leaves, structure = flatten(x)
        return tuple(zip(keys, leaves, strict=True)), structure

    def unflatten(structure: Any, leaves: Any) -> Any:
        return cls(**dict(zip(meta, structure[1:], strict=True)), **dict(zip(data, leaves, strict=True)))

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    if cls.__module__.startswith("jaxem."):
        STRUCTS[struct_name(cls)] = cls
    return cls


class Status(enum.IntEnum):
    """How a lane stands: an int32 in every lane, never a bool."""

    RUNNING = 0
    CONVERGED = 1
    MAX_STEPS = 2
    NONFINITE = 3
    DEGENERATE = 4
    DECREASED = 5
    INTERRUPTED = 6


class StopReason(enum.IntEnum):
    """Which stopping criterion fired."""

    NONE = 0
    LOGLIK_RTOL = 1
    LOGLIK_ATOL = 2
    PARAM_RTOL = 3
    PARAM_ATOL = 4


@struct
class Rows:
    """What belongs to single data rather than to the model; every leaf leads with n.

    Attributes:
        local: variational or per-datum parameters, from `Model.local`.
        scores: local scores, from `Model.scores`.
        labels: (n,) int, the known latent value or -1; for responsibilities given as labels, (n, K) floats.
    """

    local: PyTree = None
    scores: PyTree = None
    labels: Array | None = None


class FitError(RuntimeError):
    """Every lane of a fit failed; the message counts them by status."""


class Model:
    """A latent-variable model. Subclasses are frozen dataclasses made pytrees by `jaxem.struct`.

    Required: `natural`, `log_marginal`, `initialize`. All else has a default. The complete-data
    log-density must be linear in `natural`, with log-normalisers as leaves of their own, so that
    the gradient of `log_marginal` is the expected sufficient statistics.
    """

    #: Prefix tree of `jaxem.constraints` over the parameters.
    constraints: Any = None
    #: (params, data) -> rows of local scores, for what has no finite statistics; else None.
    scores: ClassVar[Any] = None
    #: (packed natural, data, previous or None) -> per-datum parameters; else None.
    local: ClassVar[Any] = None
    #: Prefix tree of `jaxem.constraints` over what `local` returns: accelerators then move it along. None: they do not.
    local_constraints: ClassVar[Any] = None
    #: (stats, params) -> params, the closed-form M-step; else None.
    m_step: ClassVar[Any] = None
    #: (params, data, weight, rows) -> (loglik, stats), where faster or steadier than the derived one; else None.
    e_step: ClassVar[Any] = None
    #: (params) -> scalar, a prior that no pseudo-statistics express; else None.
    log_prior: ClassVar[Any] = None
    #: Whether `log_marginal` is a lower bound rather than the log-likelihood itself.
    is_bound: ClassVar[bool] = False
    #: Name of the field that counts components whose order means nothing, or None.
    exchangeable: ClassVar[str | None] = None
    #: "marginal" where entries of a datum may be NaN, which are summed out; None where they may not.
    missing: str | None = None
    #: How many values labels may take, or None where there are none to check.
    n_labels: int | None = None
    #: Whether `m_step` is an exact maximum of q, so that the gradient of q vanishes there.
    m_step_is_maximum: ClassVar[bool] = True
    #: Whether `m_step` raises q with `log_prior` in it; else Optax does, from where `m_step` leads.
    m_step_has_prior: ClassVar[bool] = False
    #: Key under which data may hold bools, False for entries of a datum that count for nothing; None: there is none.
    mask: ClassVar[str | None] = None

    # --- the density -------------------------------------------------------------------------
    def natural(self, params: Params) -> PyTree:
        """Natural parameters, shared by all data."""
        raise NotImplementedError

    def log_marginal(self, natural: PyTree, data: PyTree, rows: Rows) -> Array:
        """(n,) log p(x_n | natural), or a bound. `natural` is what `pack` made of the natural parameters."""
        raise NotImplementedError

    def pack(self, natural: PyTree) -> PyTree:
        """What `log_marginal` reads: computed once an iteration, outside the scan over blocks."""
        return natural

    def at(self, params: Params) -> Model:
        """The same model with its statistics taken about `params`, where rounding is least. Default: itself."""
        del params
        return self

    def moved(self, stats: PyTree, params: Params) -> PyTree:
        """Statistics of this model, taken about what `at` was given, as those of `self.at(params)`.

        Averages of statistics over steps need it, for parameters move. Default: for models that have no origin.

        Raises:
            TypeError: for a model that has one, and does not say how to move it.
        """
        if type(self).at is not Model.at:
            raise TypeError(f"{type(self).__name__} takes statistics about parameters (at), and has no `moved` to average them")
        return stats

    def forms(self, params: Params) -> tuple[Array | int, tuple[Model, ...]]:
        """Models equal in law that differ in arithmetic, cheapest first, and the index of the one safe at `params`."""
        del params
        return 0, (self,)

    # --- the M-step --------------------------------------------------------------------------
    @property
    def ascended(self) -> Any:
        """Prefix tree of bools: True for parameters that `m_step` leaves to Optax."""
        return self.m_step is None

    def pseudo_stats(self, params: Params) -> PyTree | None:
        """Conjugate prior as statistics shaped like `natural`: log-prior = <pseudo_stats, natural>.

        Called on what `at` returned; `params` give shapes, never values.
        """
        del params
        return None

    def degenerate(self, params: Params) -> Array | bool:
        """Whether a component lies at its floor."""
        del params
        return False

    def at_floor(self, params: Params) -> PyTree:
        """Bools shaped like `params`: which entries lie at a floor. Default: all, where `degenerate` says so."""
        flag = jnp.asarray(self.degenerate(params))
        return jax.tree.map(lambda x: jnp.broadcast_to(flag, jnp.shape(x)), params)

    # --- the boundary of fit -----------------------------------------------------------------
    def validate(self, data: PyTree) -> PyTree:
        """Check data on the host and convert them to arrays; raises ValueError or TypeError."""
        return data

    def prepared(self, data: PyTree) -> Model:
        """This model with what its data share, read from validated data on the host: a table of missing patterns."""
        del data
        return self

    def blank(self, data: PyTree) -> Params | None:
        """Valid parameters of the shapes that `data` call for, against which `init` is checked; None: no check."""
        del data
        return None

    def coordinates(self, data: PyTree, xp: Any, present: Any = None) -> Any:
        """A change of coordinates in which rounding is least (see `jaxem.affine`), or None.

        Args:
            data: the data.
            xp: numpy or jax.numpy.
            present: (N,) bools, the data that count; None: all.
        """
        del data, xp, present
        return None

    def change_data(self, data: PyTree, affine: Any) -> PyTree:
        """Data in new coordinates, in their own dtype."""
        return affine.data(data)

    def log_volume(self, data: PyTree, affine: Any) -> Array | float:
        """What log-densities lose in new coordinates: a number, or (N,) where data differ in size."""
        del data
        return affine.log_volume()

    def changed(self, affine: Any) -> Model:
        """This model, priors included, in new coordinates."""
        del affine
        return self

    def change_params(self, params: Params, affine: Any) -> Params:
        """Parameters in new coordinates."""
        del affine
        return params

    #: Whether `initialize` is random.
    needs_key: ClassVar[bool] = True

    def initialize(self, key: Array | None, data: PyTree, weight: Array) -> Params:
        """Starting parameters of one lane."""
        raise NotImplementedError

    def initialize_by(self, strategy: Any, key: Array | None, data: PyTree, weight: Array) -> Params:
        """Starting parameters of one lane by a strategy of `jaxem.init`."""
        return strategy.initialize(self, key, data, weight)

    # --- after the fit -----------------------------------------------------------------------
    def log_prob(self, params: Params, data: PyTree) -> Array:
        """(N,) log p(x_n | params), or the bound."""
        model = self.at(params)
        model = model.forms(params)[1][-1]
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


@struct
class Restarts:
    """What became of every lane; each field (R,), `history` (R, steps): see `Result.history`."""

    loglik: Array
    objective: Array
    status: Array
    n_steps: Array
    history: Array


@struct
class Result:
    """A finished fit: the winning lane, and a line about each of the others.

    Attributes:
        params: parameters of the winning lane.
        local: its per-datum parameters, or None; leads with N.
        loglik: log-likelihood (or bound) at `params`, in the data's own units.
        objective: log-likelihood + log-prior - penalty: what rose and what stopped.
        status: int32 `Status`.
        stop: int32 `StopReason`.
        n_steps: EM maps evaluated by the winning lane.
        history: its last objective values, oldest first; NaN beyond the steps taken.
        restarts: all lanes.
        model: the fitted model.
    """

    params: Params
    local: PyTree
    loglik: Array
    objective: Array
    status: Array
    stop: Array
    n_steps: Array
    history: Array
    restarts: Restarts
    model: Any

    @property
    def converged(self) -> Array:
        """Whether the winning lane met a stopping criterion and is no failure."""
        return self.status == Status.CONVERGED

    @property
    def params_converged(self) -> Array:
        """Whether the winning lane stopped on its parameters, as gradients through the fit need it."""
        on_params = (self.stop == StopReason.PARAM_RTOL) | (self.stop == StopReason.PARAM_ATOL)
        return self.converged & on_params

    @property
    def stop_reason(self) -> str:
        """Name of the criterion that fired, in lower case; 'none' where none did. For one concrete fit."""
        return StopReason(int(self.stop)).name.lower()

    def __str__(self) -> str:
        if isinstance(self.loglik, jax.core.Tracer) or np.ndim(self.loglik):
            return repr(self)
        counts = {s.name: int(np.sum(np.asarray(self.restarts.status) == s)) for s in Status}
        lanes = ", ".join(f"{n} {name}" for name, n in counts.items() if n)
        lines = [
            f"{type(self.model).__name__}: {Status(int(self.status)).name} after {int(self.n_steps)} steps"
            f" (stopped by {self.stop_reason})",
            f"log-likelihood {float(self.loglik):.6f}   objective {float(self.objective):.6f}",
            f"restarts: {lanes}",
        ]
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.params):
            text = np.array2string(np.asarray(leaf), precision=4, suppress_small=True, threshold=40)
            lines.append(f"{jax.tree_util.keystr(path, simple=True, separator='.')}: " + text.replace("\n", "\n  "))
        return "\n".join(lines)
