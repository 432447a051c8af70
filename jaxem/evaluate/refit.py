"""A call of `fit` that is made many times inside one program, to other weights, labels or data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxem.engine.regularizer import Regularizer, regularizer
from jaxem.engine.stop import one_rule
from jaxem.fitting.checks import check_algorithm
from jaxem.fitting.fit import fit
from jaxem.model import Model
from jaxem.numerics.blocks import float_dtype
from jaxem.pytree import PyTree, static, struct
from jaxem.types import Result

#: Options of `fit` that are structure; the others are numbers, and a changed number compiles nothing again.
_STRUCTURE = ("n_restarts", "block_size", "standardize")


@struct
class Refit:
    """A call of `fit` as an argument of a jitted function: its numbers are traced, its structure is compiled.

    Attributes:
        model: the model.
        data: N data.
        weight: (N,) in the data's dtype, or None.
        labels: (N,) int32, or None.
        key: JAX random key, or None.
        regularizer: penalty, log_prior, frozen and tied.
        numbers: options by name.
        structure: options by name, in pairs.
    """

    model: Model
    data: PyTree
    weight: Any
    labels: PyTree
    key: Any
    regularizer: Regularizer
    numbers: dict[str, Any]
    structure: tuple[tuple[str, Any], ...] = static()

    def fitted(self, by: Callable[..., Result] = fit, **changes: Any) -> Result:
        """The fit, with other arguments where `changes` names them; `by` is `fit` or takes what it takes."""
        own = {"model": self.model, "data": self.data, "weight": self.weight, "labels": self.labels, "key": self.key}
        held = self.regularizer
        own |= {"penalty": held.penalties, "log_prior": held.log_prior, "frozen": held.frozen, "tied": held.tied}
        return by(**(own | self.numbers | dict(self.structure) | changes))


def refit_of(
    model: Model,
    data: PyTree,
    *,
    weight: Any = None,
    labels: Any = None,
    key: Array | None = None,
    penalty: Any = None,
    log_prior: Any = None,
    frozen: Any = None,
    tied: Any = None,
    **options: Any,
) -> Refit:
    """The `Refit` of arguments of `fit`; raises TypeError or ValueError for those that no fit could use."""
    if isinstance(options.get("init"), Result):
        options["init"] = options["init"].params
    if "stop" in options:
        options["stop"] = one_rule(options["stop"])
    if "algorithm" in options:
        check_algorithm(options["algorithm"])
    return Refit(
        model=model,
        data=data,
        weight=None if weight is None else jnp.asarray(weight, float_dtype(data)),
        labels=None if labels is None else jnp.asarray(labels, jnp.int32),
        key=key,
        # Names become tuples, which can be hashed, and plain functions pytrees, whose numbers are traced.
        regularizer=regularizer(penalty, log_prior, frozen, tied),
        structure=tuple((name, options.pop(name)) for name in _STRUCTURE if name in options),
        numbers=options,
    )
