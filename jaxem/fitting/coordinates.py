"""A fit may compute in other coordinates than the data came in: how they are chosen, applied, and undone."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxem import constraints as sets
from jaxem import init as starts
from jaxem.data.sequences import rescaled_data
from jaxem.data.validation import is_traced
from jaxem.engine.m_step import log_prior as model_log_prior
from jaxem.engine.regularizer import Regularizer
from jaxem.fitting.checks import raise_if_sizes_are_traced
from jaxem.fitting.task import Task
from jaxem.model import Model
from jaxem.numerics.affine import Affine
from jaxem.numerics.blocks import replace_absent
from jaxem.numerics.trees import any_vmapped, cast, module_of, on_device
from jaxem.pytree import PyTree
from jaxem.types import Params, Result


def coordinates(model: Model, data: PyTree, weight: Any, xp: Any) -> Any:
    """`Model.coordinates` of the rows that count; under vmap over weights, of those that count in any restart."""
    if weight is None:
        return model.coordinates(data, xp)
    if xp is np:
        return model.coordinates(jax.tree.map(lambda x: np.asarray(x)[weight > 0], data), np)
    present = any_vmapped(jax.lax.stop_gradient(weight) > 0)
    return model.coordinates(replace_absent(data, weight), jnp, present)


def unmixed(affine: Any, regularizer: Regularizer) -> Any:
    """The change, or None where it would mix leaves of which some are frozen."""
    return None if regularizer.frozen and getattr(affine, "mixes", False) else affine


def exact_coordinates(model: Model, data: PyTree, weight: Any, mesh: Mesh | None) -> Any:
    """`coordinates` in float64: on the host, or where data lie on a mesh there."""
    if mesh is None:
        affine = coordinates(model, data, weight, np)
    else:
        with jax.enable_x64(True):
            affine = _coordinates_jit(model, data, weight)
    return jax.tree.map(lambda x: np.asarray(x, np.float64), affine)


@jax.jit
def _coordinates_jit(model, data, weight):
    data, weight = cast((data, weight), np.dtype(np.float64))
    return coordinates(model, data, weight, jnp)


def check_scale(affine: Any, dtype: Any) -> None:
    """Raise ValueError for data of a size whose variances their dtype cannot hold."""
    if not isinstance(affine, Affine):
        return
    scale = np.sqrt(np.square(affine.inverse).sum(-1)) if affine.kind == "full" else np.atleast_1d(affine.inverse)
    lowest, highest = np.sqrt(np.finfo(dtype).tiny), np.sqrt(np.finfo(dtype).max)
    if (wrong := (scale < lowest) | (scale > highest)).any():
        raise ValueError(
            f"data must vary by {lowest:.0e} to {highest:.0e}, of which {np.dtype(dtype)} holds the squares; got a standard"
            f" deviation of {scale[wrong][0]:.2g}: give them in other units{'' if lowest < 1e-100 else ', or as float64'}"
        )


def standardized(model: Model, data: PyTree, affine: Any, dtype: Any, mesh: Mesh | None) -> tuple[Array, PyTree]:
    """`log_abs_det`, and the data in new coordinates, by arithmetic in float64."""
    if mesh is None:
        return log_abs_det(model, data, affine, dtype), rescaled_data(jax.tree.map(np.asarray, data), affine)
    with jax.enable_x64(True):
        return _standardized_jit(model, data, affine, dtype)


@functools.partial(jax.jit, static_argnums=3)
def _standardized_jit(model, data, affine, dtype):
    new = jax.tree.map(lambda new, old: new.astype(old.dtype), rescaled_data(data, affine), data)
    return log_abs_det(model, data, affine, dtype), new


def floored(model: Model, data: PyTree, weight: Any) -> Model:
    """The model with its floors as numbers (see `Natural.floored`), in traced code."""
    try:
        found = jax.eval_shape(_floored, model, data, weight)
    except TypeError as error:
        raise_if_sizes_are_traced(model, error)
        raise
    if jax.tree.structure(found) == jax.tree.structure(model):  # none was left to the data
        return model
    if is_traced(model, data, weight):
        return _floored(model, data, weight)
    return jax.tree.map(np.asarray, _floored_jit(*on_device((model, data, weight))))  # numbers for the host to compute with


def _floored(model: Model, data: PyTree, weight: Any) -> Model:
    return model.floored(jax.tree.map(jnp.asarray, data), weight)


_floored_jit = jax.jit(_floored)


def rescaled(model: Model, init: Any, affine: Any) -> tuple[Model, Any]:
    """The model and its starting values in new coordinates."""
    if isinstance(init, starts.Each):
        init = starts.Each(_each_rescaled(model, init.params, affine))
    elif init is not None and not isinstance(init, starts.Init):
        init = model.rescale_params(init, affine)
    return model.rescaled(affine), init


def _each_rescaled(model: Model, params: Params, affine: Any) -> Params:
    count = len(jax.tree.leaves(params)[0])
    each = [model.rescale_params(jax.tree.map(lambda x, i=i: x[i], params), affine) for i in range(count)]
    return jax.tree.map(lambda *x: module_of(*x).stack(x), *each)


def log_abs_det(model: Model, data: PyTree, affine: Any, dtype: Any) -> Any:
    """What log-densities lose in new coordinates, log |det| of the change to them: () or (N,)."""
    lost = model.log_abs_det(data, affine)
    return lost.astype(dtype) if isinstance(lost, Array) else np.asarray(lost, dtype)


def restored(original: Model, result: Result, params: Params) -> Result:
    """The result in the data's own units: the log-prior there differs from the one inside by a constant."""
    shift = result.loglik + model_log_prior(original, params) - result.objective
    return dataclasses.replace(
        result, params=params, model=original, objective=result.objective + shift, history=result.history + shift,
        restarts=dataclasses.replace(
            result.restarts, objective=result.restarts.objective + shift, history=result.restarts.history + shift
        ),
    )  # fmt: skip


restored_jit = jax.jit(restored)


@dataclasses.dataclass(frozen=True)
class Units:
    """The data's own units, and the way back to them.

    Attributes:
        model: as it was given.
        affine: the change from these units to the coordinates of the computation; None: none.
        dtype: of the data.
        traced: whether results are traced.
    """

    model: Model
    affine: Any
    dtype: Any
    traced: bool

    def back(self, result: Result) -> Result:
        """A result in these units."""
        if self.affine is None:
            return dataclasses.replace(result, model=self.model)
        if self.traced:
            return restored(self.model, result, self.model.rescale_params(result.params, self.affine.inverted()))
        return restored_jit(*on_device((self.model, result, self.params(result.params))))

    def params(self, params: Params) -> Params:
        """Parameters in these units on the host, by arithmetic in float64, as the data's dtype holds them."""
        doubled = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
        with np.errstate(over="ignore", under="ignore"):  # `hold` tells
            back = self.model.rescale_params(doubled, self.affine.inverted())
            return jax.tree.map(lambda x: np.asarray(x, self.dtype), back)

    def hold(self, params: Params) -> bool:
        """Whether parameters in these units satisfy their constraints, so that `fit` takes them as `init`."""
        try:
            sets.check(self.model.constraints, params)
        except ValueError:
            return False
        return True

    def unusable(self, params: Params) -> Array | None:
        """(R,) which restarts' parameters, traced, leave their constraints in these units; None where they are in them."""
        if self.affine is None:
            return None
        inverse = self.affine.inverted()

        def holds(params: Params) -> Array:
            back = self.model.rescale_params(params, inverse)
            return sets.inside(self.model.constraints, back, back)

        return ~jax.vmap(holds)(params)


def in_coordinates(task: Task) -> tuple[Task, Units]:
    """A task in coordinates in which rounding is least, its floors numbers, and the units that it came in."""
    model, dtype, mesh, traced = floored(task.model, task.data, task.weight), task.dtype, task.options.mesh, task.traced
    task = dataclasses.replace(task, model=model)
    affine = None
    if task.standardize and traced:
        # Any coordinates lead to the same fit: its derivatives need not go through the choice of them.
        affine = jax.lax.stop_gradient(coordinates(model, task.data, task.weight, jnp))
    elif task.standardize:
        affine = exact_coordinates(model, task.data, task.weight, mesh)
        check_scale(affine, dtype)
    affine = unmixed(affine, task.options.regularizer)
    units = Units(model, affine, dtype, traced)
    task = dataclasses.replace(task, standardize=False)
    if affine is None:
        return dataclasses.replace(task, log_abs_det=np.zeros((), dtype)), units
    if traced:
        lost, data = log_abs_det(model, task.data, affine, dtype), rescaled_data(task.data, affine)
    else:
        lost, data = standardized(model, task.data, affine, dtype, mesh)
    model, init = rescaled(model, task.init, affine)
    if not traced:
        model, init = cast(model, dtype), cast(init, dtype)
    return dataclasses.replace(task, model=model, init=init, data=data, log_abs_det=lost), units
