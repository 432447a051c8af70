"""Error bars from the curvature of the log-likelihood: information matrices, standard errors, intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from jax.scipy.special import ndtri

from jaxem import constraints as sets
from jaxem.data.sequences import label_shape
from jaxem.data.validation import check_positive_int, check_same_shapes, check_weight, is_traced
from jaxem.evaluate.curvature import Curvature
from jaxem.evaluate.directions import explained, flat_directions, product, scaled, tolerance
from jaxem.fitting.checks import check_model, check_rows_finite, checked_labels
from jaxem.fitting.coordinates import coordinates, floored
from jaxem.fitting.layout import rows_width
from jaxem.model import Model
from jaxem.numerics.blocks import choose_block_size, cut, float_dtype, n_rows
from jaxem.numerics.linalg import cholesky, inverse_lower, transpose
from jaxem.numerics.logs import divided
from jaxem.numerics.switches import own_switches
from jaxem.numerics.trees import cast
from jaxem.pytree import PyTree, static, struct
from jaxem.types import Params, Result

METHODS = ("observed", "louis", "oakes", "empirical", "sandwich")


class SingularInformationError(RuntimeError):
    """The information matrix has no inverse; the message names the parameters in the direction that it says nothing of."""


@struct
class Information:
    """An information matrix in free coordinates (see `jaxem.constraints`), P of them.

    Attributes:
        matrix: (P, P) information about the free coordinates.
        score: (P,) gradient of the log-likelihood and log-prior; zero at a maximum.
        complete: (P, P) information of the complete data, for methods "louis" and "oakes"; else None.
        variability: (P, P) sum of outer products of scores, for method "sandwich"; else None.
        boundary: (P,) bools, coordinates left out of every inversion: structural zeros, covariances at their
            floor, coordinates of which the data say nothing, and logarithms whose optimum lies at infinity.
        flat: (P, P) projector onto the directions in which the log-likelihood does not change, in coordinates scaled
            to unit information: a rotation of factors, a covariance of two columns never seen together.
        params: where it was taken: in the model's canonical form, probabilities below eps^2 at zero.
        model: whose they are.
        method: how it was computed.
    """

    matrix: Array
    score: Array
    complete: Array | None
    variability: Array | None
    boundary: Array
    flat: Array
    params: Params
    model: Any
    method: str = static()

    @property
    def constraints(self) -> Any:
        """Of the model."""
        return self.model.constraints

    @property
    def missing(self) -> Array:
        """(P, P) information lost because latent values were not observed: complete - observed."""
        if self.complete is None:
            raise TypeError(f"information must be of method 'louis' or 'oakes' to know what is missing; got {self.method!r}")
        return self.complete - self.matrix

    @property
    def singular(self) -> Array:
        """Whether the matrix, boundary and flat directions aside, is not safely positive definite, or a parameter is loose."""
        return _of_parameters(self)[1]

    def covariance(self, function: Callable[[Params], PyTree] | None = None) -> Array:
        """(M, M) covariance of the M entries of the parameters, or of a function, flattened leaf after leaf (delta method).

        NaN for entries without an interior estimate; inside jit, NaN throughout where the information is
        singular.

        Raises:
            SingularInformationError: where it is singular, or flat in a direction in which an entry changes; outside jit.
        """
        covariance, singular = _of_parameters(self) if function is None else _of_function(self, function)
        if not is_traced(singular) and bool(singular):
            raise SingularInformationError(self._complaint())
        return covariance

    def standard_errors(self, function: Callable[[Params], PyTree] | None = None) -> PyTree:
        """See `standard_errors`."""
        shaped = self.params if function is None else jax.eval_shape(function, self.params)
        unravel = ravel_pytree(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shaped))[1]
        return unravel(jnp.sqrt(jnp.diagonal(self.covariance(function))))

    def intervals(self, level: float | Array = 0.95) -> tuple[Params, Params]:
        """See `intervals`."""
        half = ndtri((1 + jnp.asarray(level, self.matrix.dtype)) / 2)
        full = sets.broadcast(self.constraints, self.params)
        is_set = lambda x: isinstance(x, sets.Real)  # noqa: E731
        errors = self.standard_errors()
        both = jax.tree.map(lambda c, x, e: c.interval(x, half * e), full, self.params, errors, is_leaf=is_set)
        return jax.tree.transpose(jax.tree.structure(self.params), jax.tree.structure((0, 0)), both)

    # --- what is said of trouble -------------------------------------------------------------
    def _names(self) -> list[str]:
        """Leaf of each free coordinate."""
        leaves = jax.tree_util.tree_leaves_with_path(sets.to_free(self.constraints, self.params))
        return [jax.tree_util.keystr(path, simple=True, separator=".") or "params" for path, x in leaves for _ in range(x.size)]

    def boundary_leaves(self) -> dict[str, int]:
        """Names of the leaves with coordinates left out, and how many of each."""
        names = [name for name, out in zip(self._names(), np.asarray(self.boundary), strict=True) if out]
        return {name: names.count(name) for name in dict.fromkeys(names)}

    def flat_leaves(self) -> dict[str, float]:
        """Names of the leaves that the data do not determine, and their shares of the flat directions, which add up."""
        share = np.diagonal(np.asarray(self.flat, np.float64))
        totals: dict[str, float] = {}
        for name, part in zip(self._names(), share, strict=True):
            totals[name] = totals.get(name, 0.0) + float(part)
        return {name: total for name, total in totals.items() if total > 1e-3}

    def _flat(self) -> str:
        count = round(sum(self.flat_leaves().values()))
        where = "a direction" if count == 1 else f"{count} directions"
        return f"flat in {where} of {', '.join(self.flat_leaves())}"

    def _complaint(self) -> str:
        if not np.isfinite(np.asarray(self.matrix)).all():
            return "the information is not finite: the log-likelihood has no second derivative at params"
        scale, unit = scaled(self.matrix, self.boundary)
        kept, unit = np.eye(len(self.flat)) - self.flat, np.asarray(unit, np.float64)
        values, vectors = np.linalg.eigh(kept @ unit @ kept + self.flat)
        if values[0] > tolerance(self.matrix.dtype) and self.flat_leaves():
            return (
                f"the information is singular and the log-likelihood {self._flat()}: the data do not determine them, but"
                " functions of the parameters that do not change there have standard errors"
            )
        largest = np.abs(vectors[:, 0]) > 0.1 * np.abs(vectors[:, 0]).max()
        leaves = list(dict.fromkeys(np.array(self._names())[largest]))
        what, why = "singular", "the data do not determine them, or params is no maximum"
        if values[0] < -tolerance(self.matrix.dtype) - float(explained(self.score * scale, self.boundary)):
            what, why = (
                "not positive definite",
                "params is no maximum, the log-likelihood rises that way",
            )
        return (
            f"the information is {what} (least eigenvalue {values[0]:.2g}, coordinates scaled to unit information) in a"
            f" direction of {', '.join(leaves)}: {why}"
        )

    def __str__(self) -> str:
        if is_traced(self.matrix) or self.matrix.ndim != 2:
            return repr(self)
        lines = [f"{self.method} information about {self.matrix.shape[0]} free coordinates"]
        if self.boundary_leaves():
            lines.append("left out: " + ", ".join(f"{n} of {leaf}" for leaf, n in self.boundary_leaves().items()))
        if bool(self.singular):
            return "\n".join([*lines, self._complaint()])
        if self.flat_leaves():
            lines.append(f"log-likelihood {self._flat()}, along which nothing below changes")
        errors = jax.tree.leaves(self.standard_errors())
        for (path, x), error in zip(jax.tree_util.tree_leaves_with_path(self.params), errors, strict=True):
            pairs = zip(np.ravel(x)[:20], np.ravel(error), strict=False)
            text = ", ".join(f"{a:.4g} ({b:.2g})" for a, b in pairs) + (", ..." if np.size(x) > 20 else "")
            lines.append(f"{jax.tree_util.keystr(path, simple=True, separator='.')}: {text}")
        return "\n".join(lines)


def _delta_method(information: Information, function: Callable[[Params], PyTree] | None = None) -> tuple[Array, Array]:
    """Covariance J C J^T of the parameters or a function, and whether it is undetermined; C over interior coordinates."""
    boundary, flat = information.boundary, information.flat
    scale, unit = scaled(information.matrix, boundary)
    kept = jnp.eye(len(flat), dtype=flat.dtype) - flat
    root = inverse_lower(cholesky(product(product(kept, unit), kept) + flat))
    inverse = product(transpose(root), root)
    # 1 / diagonal: the share of what is known of a coordinate that no other coordinate could explain away.
    share = 1 / jnp.diagonal(inverse)
    singular = ~(share > tolerance(share.dtype)).all()
    inverse = product(product(kept, inverse), kept)
    inverse = jnp.where(boundary | boundary[:, None], 0, inverse * scale * scale[:, None])
    if information.variability is not None:
        inverse = product(product(inverse, information.variability), inverse)
    jacobian = jacobian_of(information, function)
    moved = jnp.abs(jacobian)
    # An entry whose own coordinate is left out: most of its derivative, or all of none.
    held = jnp.where(boundary, moved, 0).sum(1) >= jnp.where(boundary, 0, moved).sum(1)
    # An entry that changes where the log-likelihood does not.
    steps = jnp.where(boundary, 0, jacobian) * scale
    loose = jnp.square(product(steps, flat)).sum(1) > tolerance(flat.dtype) * jnp.square(steps).sum(1)
    singular = singular | (loose & ~held).any()
    covariance = product(product(jacobian, inverse), jacobian.T)
    return jnp.where(held | held[:, None] | singular, jnp.nan, covariance), singular


_of_parameters = jax.jit(_delta_method)


def _of_function(information: Information, function: Callable[[Params], PyTree]) -> tuple[Array, Array]:
    """`_delta_method` of a function that need not be hashable, such as a method of a model that holds arrays."""
    return jax.jit(lambda given: _delta_method(given, function))(information)


def jacobian_of(information: Information, function: Callable[[Params], PyTree] | None = None) -> Array:
    """(M, P) derivative of the parameters in canonical form, or a function of them, in the free coordinates."""
    vector, back = sets.chart(information.constraints, information.params)
    then = (lambda params: params) if function is None else function
    return jax.jacfwd(lambda v: ravel_pytree(then(information.model.canonical(back(v))))[0])(vector)


def information(
    model: Model,
    params: Params | Result,
    data: PyTree,
    *,
    weight: Any = None,
    labels: Any = None,
    method: str = "observed",
    block_size: int | None = None,
) -> Information:
    """How much the data say about the parameters: an information matrix at a maximum of the likelihood.

    - "observed": minus the Hessian of the log-likelihood, by automatic differentiation.
    - "louis": complete minus missing information (Louis 1982); keeps both, for `em_rate`.
    - "oakes": minus the Hessian from derivatives of q and of the E-step (Oakes 1999); with a model's own
      `e_step` it differentiates that one.
    - "empirical": outer products of the scores of single data (Berndt, Hall, Hall and Hausman 1974).
    - "sandwich": the observed matrix, with covariances robust to a wrong model (Huber 1967; White 1982).

    The first three are equal. A log-prior of the model is part of them. Works inside `jax.jit` and `jax.vmap`.

    Args:
        model: the model.
        params: parameters, or the `Result` that holds them: a maximum, or nothing that follows means much.
        data: as for `fit`.
        weight: (N,) non-negative; 2 is a datum seen twice.
        labels: (N,) known latent values, -1 for unknown.
        method: one of the above.
        block_size: rows of one block; None chooses.

    Returns:
        An `Information`. What lies on a boundary is marked in it, and a singular matrix is returned as it is.

    Raises:
        TypeError: for a model with per-datum parameters or a bound, whose curvature is no information.
        ValueError: for an unknown method, for no more data than free coordinates where a method needs the scores
            of single data, and whatever the model, the weights or the labels refuse.
    """
    check_model(model)
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    if model.local is not None or model.is_bound:
        raise TypeError(
            f"model must have a log-likelihood; {type(model).__name__} has per-datum parameters or a bound, whose"
            " curvature is no information: use jaxem.bootstrap"
        )
    if block_size is not None:
        block_size = check_positive_int(block_size, "block_size")
    params = params.params if isinstance(params, Result) else params
    with own_switches():
        if is_traced(model, params, data, weight, labels):
            data = jax.tree.map(jnp.asarray, data)
            return _information(model, params, data, weight, labels, method=method, block_size=block_size)
        data, weight, labels = checked(model, params, data, weight, labels)
        model = model.prepared(data)
        return _information_jit(model, params, data, weight, labels, method=method, block_size=block_size)


def checked(model: Model, params: Params, data: PyTree, weight: Any, labels: Any) -> tuple[PyTree, Any, PyTree]:
    """Data, weights and labels as `fit` would take them, `params` looked at too; raises as it does."""
    data = model.validate(data)
    n = n_rows(data)
    if weight is not None:
        weight = np.asarray(check_weight(weight, n), float_dtype(data))
    check_rows_finite(model, data, weight)
    labels = checked_labels(labels, label_shape(data), model.n_labels)
    template = model.template(data)
    if template is not None:
        check_same_shapes(params, template, "params")
    # A rate may have come to zero: that is a boundary to report, not an error.
    at_zero = lambda c: sets.NonNegative() if isinstance(c, sets.Positive) else c  # noqa: E731
    full = sets.broadcast(model.constraints, params)
    allowed = jax.tree.map(at_zero, full, is_leaf=lambda x: isinstance(x, sets.Real))
    sets.check(allowed, params, "params")
    return jax.tree.map(jnp.asarray, data), weight, labels


def _information(model, params, data, weight, labels, *, method: str, block_size: int | None) -> Information:
    params = model.canonical(cast(jax.tree.map(jnp.asarray, params), float_dtype(data)))
    params = sets.each(lambda c, x: c.settled(x), model.constraints, params)
    n = n_rows(data)
    size = sum(x.size for x in jax.tree.leaves(jax.eval_shape(partial(sets.to_free, model.constraints), params)))
    if block_size is None:
        width = rows_width(model, params, data, labels, 1) * max(1, size)  # a backward pass for each coordinate
        block_size = choose_block_size(n, width, float_dtype(data).itemsize, jax.default_backend())
    if method in ("empirical", "sandwich") and n <= size:
        raise ValueError(
            f"data must be more than the {size} free coordinates for method={method!r}; got N={n}: use method='observed', or"
            " jaxem.bootstrap(method='parametric')"
        )
    weight = None if weight is None else jnp.asarray(weight, float_dtype(data))
    about = Curvature(model, params, cut(data, weight, labels, block_size))
    complete = None
    outer = about.outer() if n > size else None
    if method == "louis":
        complete = about.complete()
        matrix = complete - about.missing()
    elif method == "oakes":
        complete = about.complete()
        matrix = complete - about.cross()
    else:
        matrix = about.observed() if method != "empirical" or outer is None else outer
    score = about.score()
    boundary = _boundary(model, params, data, weight, matrix, score)
    found = Information(
        matrix=matrix,
        score=score,
        complete=complete,
        variability=outer if method == "sandwich" else None,
        boundary=boundary,
        flat=jnp.zeros_like(matrix),
        params=params,
        model=model,
        method=method,
    )
    if outer is None:  # too few rows to tell what changes none of them: what changes nothing that is reported
        if type(model).canonical is Model.canonical:
            return found
        jacobian = jacobian_of(found)
        length = jnp.linalg.norm(jacobian * scaled(matrix, boundary)[0], axis=1, keepdims=True)
        jacobian = divided(jacobian, length)
        outer = product(jacobian.T, jacobian)
    return dataclasses.replace(found, flat=flat_directions(matrix, score, outer, boundary))


_information_jit = jax.jit(_information, static_argnames=("method", "block_size"))


def _boundary(model: Model, params: Params, data: PyTree, weight: Any, matrix: Array, score: Array) -> Array:
    """(P,) see `Information.boundary`."""
    model, affine = floored(model, data, weight), coordinates(model, data, weight, jnp)
    if affine is None:
        floor = model.at_floor(params)
    else:  # floors are relative to the spread of the data
        floor = model.rescaled(affine).at_floor(model.rescale_params(params, affine))
    floor = jax.tree.map(jnp.logical_or, floor, model.at_limit(params))
    edge = sets.each(lambda c, x, f: c.edge(x, f), model.constraints, params, floor)
    logarithmic = sets.each(lambda c, e: jnp.full(e.shape, c.logarithmic), model.constraints, edge)
    edge, logarithmic = ravel_pytree(edge)[0].astype(bool), ravel_pytree(logarithmic)[0].astype(bool)
    # Towards an optimum at zero the log-likelihood goes as exp(coordinate): slope and curvature are equal, and
    # Newton's step has length one however near zero is. At an optimum elsewhere it has length zero.
    curvature = jnp.diagonal(matrix)
    receding = logarithmic & (jnp.abs(score) > jnp.abs(curvature) / 2)
    return edge | receding | (curvature == 0)


def standard_errors(of: Any, function: Callable[[Params], PyTree] | None = None) -> PyTree:
    """Standard errors in the parameters' own shapes and units, or of a function of the parameters.

    Where the log-likelihood is flat in a direction, the functions that do not change along it have standard errors all
    the same: the means of columns of which two are never seen together, `model.covariance` of factors. Of a model with a
    canonical form, such as the rotation of factors, errors are those of its parameters in this form
    (`information.params`).

    Args:
        of: an `Information` (delta method: covariance J C J^T with J the derivative of the parameters in
            their free coordinates), or a `Bootstrap` (standard deviation over its samples).
        function: of the parameters, differentiable, gives an array or a tree of arrays; None: the parameters themselves.

    Returns:
        A tree shaped like the parameters, or like what `function` gives; NaN for an entry without an interior estimate:
        at a boundary, at a floor, fixed. Inside jit, NaN throughout where the information is singular.

    Raises:
        SingularInformationError: where the information is singular, or flat in a direction in which an entry changes;
            outside jit. The message names the leaves.
    """
    return of.standard_errors(function)


def intervals(of: Any, level: float | Array = 0.95) -> tuple[Params, Params]:
    """Confidence intervals of every parameter.

    Args:
        of: an `Information`: Wald intervals on a scale that keeps them in the parameter space (logarithms of
            positive parameters and variances, logits of probabilities), or a `Bootstrap`: percentiles.
        level: confidence of each interval by itself.

    Returns:
        Lower and upper ends, two trees shaped like the parameters; NaN and errors as for `standard_errors`.
    """
    if not is_traced(level) and not 0 < float(level) < 1:
        raise ValueError(f"level must lie strictly between 0 and 1; got {level}")
    return of.intervals(level)
