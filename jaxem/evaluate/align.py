"""Which component of one fit is which of another: names that carry no meaning are matched by what they explain."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxem.model import Model
from jaxem.pytree import PyTree
from jaxem.types import Params


def component_axes(model: Model, data: PyTree) -> PyTree | None:
    """Tree shaped like the parameters of tuples of axes that run over components; None where components have no order to lose.

    They are the axes that grow when the model is given one component more.
    """
    name = model.exchangeable
    if name is None or getattr(model, name) < 2:
        return None
    more = dataclasses.replace(model, **{name: getattr(model, name) + 1})  # type: ignore[type-var]
    now, then = (jax.eval_shape(m.template, data) for m in (model, more))

    def grown(a: Any, b: Any) -> tuple[int, ...]:
        return tuple(axis for axis, (m, n) in enumerate(zip(a.shape, b.shape, strict=True)) if m != n)

    return jax.tree.map(grown, now, then)


def permute(params: Params, order: Array, axes: PyTree) -> Params:
    """Parameters with component `order[k]` in the place of component k."""

    def leaf(x: Array, along: tuple[int, ...]) -> Array:
        for axis in along:
            x = jnp.take(x, order, axis)
        return x

    leaves = zip(jax.tree.leaves(params), jax.tree.structure(params).flatten_up_to(axes), strict=True)
    return jax.tree.unflatten(jax.tree.structure(params), [leaf(x, along) for x, along in leaves])


def align(model: Model, params: Params, reference: Array, data: PyTree, axes: PyTree) -> Params:
    """Rename components so that the data they explain are those that the reference's explain.

    The assignment of largest total overlap of posteriors, by the Hungarian algorithm; it looks at no
    parameter, so no unit or scale matters.

    Args:
        model: the model.
        params: parameters whose components may stand in any order.
        reference: (..., K) posterior of the data under the reference parameters.
        data: the data.
        axes: from `component_axes`.
    """
    k = reference.shape[-1]
    # What is impossible under either says nothing.
    ours, theirs = (jnp.nan_to_num(x).reshape(-1, k) for x in (model.posterior(params, data), reference))
    overlap = jnp.matmul(theirs.T, ours, precision=jax.lax.Precision.HIGHEST)
    rows, columns = optax.assignment.hungarian_algorithm(-jnp.nan_to_num(overlap))
    return permute(params, columns[jnp.argsort(rows)], axes)
