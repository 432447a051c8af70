"""Gaussian components with full, tied, diagonal or spherical covariances.

Statistics are moments of whitened residuals y = factor^-1 (x - mean) about each component's current
parameters (`centered`), so that neither offsets nor narrow clusters cancel in the M-step. Local scores come in
two variants of equal law: one matrix product W.Phi with the features (1, x, x x^T), fastest; and squared
residuals |A x + b|^2, needed once a cluster is narrow against the spread of the data.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem import constraints as sets
from jaxem.data.validation import check_columns_seen, matrix, matrix_with_missing
from jaxem.families.base import THIN, Family, by_chance, columns
from jaxem.families.covariance import SHAPES, Full
from jaxem.families.missing import Observed, conditional_means, filled, patterns_of, roots
from jaxem.numerics.affine import Affine, standardization, whitening
from jaxem.numerics.linalg import PRECISION
from jaxem.numerics.logs import divided
from jaxem.priors import NormalInverseWishart
from jaxem.pytree import PyTree, static, struct
from jaxem.types import Params

#: Precision (inverse variance, data of unit variance) above which scores use residuals: the product form is off
#: by up to this many rounding units a row, in float64 enough for a restart to seem to fall.
NARROW = 1e3


@struct
class Gaussian(Family):
    """Normal density; parameters `mean` (K, D) and `covariance`.

    Attributes:
        covariance: "full" (K, D, D), "tied" (D, D), "diag" (K, D) or "spherical" (K,).
        floor: least eigenvalue of a covariance, relative to the data's covariance ("full", "tied"), to each
            column's variance ("diag") or to their mean ("spherical"). A component at the floor makes a
            restart DEGENERATE. The estimate is the constrained maximum, eigenvalues clipped. Of full matrices what cannot be
            told from singular counts as at the floor too: in float32 variances below 3 D eps of a component's largest.
        prior: normal-inverse-Wishart prior, or None.
        missing: "marginal" where entries may be NaN: missing at random, and summed out (Little and Rubin 2002). A row
            without any entry tells nothing. Floors are then relative to each column's variance. None refuses NaN.
    """

    covariance: str = static(SHAPES, default="full")
    floor: float | Array = 1e-8
    prior: NormalInverseWishart | None = None
    missing: str | None = static((None, "marginal"), default=None)
    patterns: Any = None
    form: str = static(default="product")
    origin: Any = None
    factor: Any = None
    inverse: Any = None

    @property
    def shape(self) -> Full:
        """The algebra of this kind of covariance."""
        return SHAPES[self.covariance]

    @property
    def constraints(self) -> dict[str, Any]:
        return {"mean": sets.Real(), "covariance": self.shape.constraint}

    def centered(self, params: Params) -> Gaussian:
        factor = self.shape.factor(params["covariance"])
        return self._with(origin=params["mean"], factor=factor, inverse=self.shape.inverse(factor))

    def recentered(self, stats: PyTree, params: Params) -> PyTree:
        """Moments of y' = step y + shift from those of y."""
        shape, new, weight = self.shape, self.centered(params), stats["center"]
        step = shape.product(new.inverse, self.factor)
        shift = shape.apply(new.inverse, self.origin - new.origin)
        before = shape.apply(step, divided(stats["linear"], weight[:, None]))
        after, root = before + shift, jnp.sqrt(jnp.maximum(weight, 0))[:, None]
        square = shape.congruent(step, shape.symmetrized(stats["square"]))
        square = square + shape.outer(root * after) - shape.outer(root * before)
        return {**stats, "linear": weight[:, None] * after, "square": square}

    def variants(self, params: Params) -> tuple[Array | int, tuple[Gaussian, ...]]:
        if self.missing:
            return 0, (self,)  # by residuals, always
        inverse = self.shape.inverse(self.shape.factor(params["covariance"])) if self.inverse is None else self.inverse
        narrow = self.shape.largest_precision(inverse) > NARROW
        return narrow.astype(jnp.int32), (self, self._with(form="residual"))

    def _with(self, **changes: Any) -> Gaussian:
        return dataclasses.replace(self, **changes)

    def natural(self, params: Params) -> dict[str, Array]:
        """Leaves `log_det` (K,), `center` (K,), `linear` (K, D), `square`: t = (1, 1, y, y y^T)."""
        shape, mean = self.shape, params["mean"]
        factor = shape.factor(params["covariance"])
        root = shape.inverse(factor)
        log_det = -shape.log_det(factor, mean.shape[-1])
        if self.origin is not None:
            mean = shape.apply(self.inverse, mean - self.origin)
            root = shape.product(root, self.factor)
        precision = shape.gram(root)
        linear = shape.apply(precision, mean)
        return {
            "log_det": jnp.broadcast_to(log_det, mean.shape[:1]),
            "center": -(mean * linear).sum(-1) / 2,
            "linear": linear,
            "square": -precision / 2,
        }

    def pack(self, natural: PyTree) -> PyTree:
        """Product form: W (K, 1 + D + F), and the shared square of tied covariances. Residual form: A, b, constant."""
        if self.missing:
            return self.pack_observed(natural)
        d = natural["linear"].shape[-1]
        return self.pack_quadratic(natural, natural["log_det"] - d * math.log(2 * math.pi) / 2)

    def pack_quadratic(self, natural: PyTree, constant: Array | float) -> PyTree:
        """What makes `scores` the quadratic `center` + <`linear`, y> + <`square`, y y^T>, plus `constant`."""
        shape, linear = self.shape, natural["linear"]
        square = shape.symmetrized(natural["square"])
        constant = natural["center"] + constant
        origin, inverse = self.origin, self.inverse
        if origin is None:
            origin = jnp.zeros_like(linear)
            k, d = origin.shape
            inverse = shape.identity(k, d, origin.dtype)
        if self.form == "residual":
            center = origin.mean(0)  # subtracted from the data first, so that an offset does not cancel in A x + b
            a, b, extra = shape.residual_map(inverse, origin - center, linear, square)
            return {"a": a, "b": b, "constant": constant + extra, "center": center}
        extra, linear, square = shape.raw(inverse, origin, linear, square)
        affine = jnp.concatenate([(constant + extra)[:, None], linear], -1)
        if self.covariance == "tied":
            return {"weights": affine, "shared": shape.coefficients(square)}
        return {"weights": jnp.concatenate([affine, shape.coefficients(square)], -1)}

    def pack_observed(self, natural: PyTree) -> Observed:
        """The components in moments: what integrates missing entries out for any pattern."""
        shape, linear = self.shape, natural["linear"]
        k, d = linear.shape
        lower = shape.factor(-2 * shape.symmetrized(natural["square"]))
        spread = shape.gram(shape.inverse(lower))
        mean, log_det = shape.apply(spread, linear), -shape.log_det(lower, d)
        center = natural["center"] + (linear * mean).sum(-1) / 2
        if self.origin is not None:
            mean = self.origin + shape.apply(self.factor, mean)
            spread, log_det = shape.congruent(self.factor, spread), log_det + shape.log_det(self.factor, d)
        packed = Observed(mean, shape.each(spread, k, d), center, natural["log_det"] + log_det)
        if self.patterns is None:
            return packed
        root, log_det = roots(packed.covariance, jnp.asarray(self.patterns))
        return dataclasses.replace(packed, root=root, log_det=log_det)

    def scores(self, natural: PyTree, data: Array) -> Array:
        if self.missing:
            quadratic, constant, _ = natural.terms(data, self.patterns)
            return quadratic + constant
        x = columns(data)
        if self.form == "residual":
            y = self.shape.residuals(natural["a"], natural["b"], x - natural["center"][:, None])
            return natural["constant"][:, None] - (y * y).sum(1) / 2
        affine = jnp.concatenate([jnp.ones_like(x[:1]), x])
        if self.covariance == "tied":
            shared = jnp.matmul(natural["shared"], self.shape.features(x), precision=PRECISION)
            return jnp.matmul(natural["weights"], affine, precision=PRECISION) + shared
        return jnp.matmul(natural["weights"], jnp.concatenate([affine, self.shape.features(x)]), precision=PRECISION)

    def m_step(self, stats: PyTree, params: Params) -> Params:
        """Weighted moments, about the origin that the statistics carry; a component without data keeps its parameters."""
        shape, count, weight = self.shape, stats["log_det"], stats["center"]
        present = (count > 0) & (weight > 0)
        mean = stats["linear"] / jnp.where(present, weight, 1)[:, None]
        spread = shape.symmetrized(stats["square"]) - shape.outer(mean * jnp.sqrt(jnp.maximum(weight, 0))[:, None])
        covariance = shape.estimate(self._degrees(count, mean.shape[-1]), spread)
        if self.origin is not None:
            mean = self.origin + shape.apply(self.factor, mean)
            covariance = shape.congruent(self.factor, covariance)
        kept = present.any() if self.covariance == "tied" else _expand(present, covariance)
        covariance = jnp.where(kept, covariance, params["covariance"])
        return {
            "mean": jnp.where(present[:, None], mean, params["mean"]),
            "covariance": shape.clip(covariance, jnp.asarray(self.floor, mean.dtype)),
        }

    def _degrees(self, count: Array, d: int) -> Array:
        return count * d if self.covariance == "spherical" else count

    def pseudo_stats(self, template: Params) -> PyTree | None:
        if self.prior is None:
            return None
        return self.prior.pseudo_stats(self, template)

    def at_floor(self, params: Params) -> dict[str, Array]:
        mean, covariance = params["mean"], params["covariance"]
        found = self.shape.at_floor(covariance, jnp.asarray(self.floor, mean.dtype) * 1.001)
        return {"mean": jnp.zeros(mean.shape, bool), "covariance": jnp.broadcast_to(found, covariance.shape)}

    @property
    def spurious(self) -> Any:  # type: ignore[override]
        """A prior bounds what chance can gain."""
        return self._spurious if self.prior is None else None

    def _spurious(self, stats: PyTree, params: Params) -> Array:
        count, d = stats["log_det"], params["mean"].shape[-1]
        return by_chance(count, self.shape.thinner(params["covariance"], count, THIN), self.shape.needed(d))

    def template(self, data: Array, n_components: int) -> Params:
        d = data.shape[1]
        identity = self.shape.identity(n_components, d, data.dtype)
        return {"mean": jnp.zeros((n_components, d), data.dtype), "covariance": identity}

    def validate(self, data: Any) -> Any:
        return matrix_with_missing(data) if self.missing else matrix(data)

    def check_fit(self, data: Any) -> None:
        if self.missing:
            check_columns_seen(np.asarray(data))

    def features(self, data: Array) -> Array:
        return filled(data) if self.missing else data

    def completed(self, data: Array) -> tuple[Gaussian, Array]:
        return (self._with(missing=None, patterns=None), filled(data)) if self.missing else (self, data)

    def prepared(self, data: Any) -> Gaussian:
        return self._with(patterns=patterns_of(np.asarray(data))) if self.missing else self

    def coordinates(self, data: Any, xp: Any, present: Any = None) -> Affine:
        kind = self.shape.affine_kind
        if self.missing:
            return standardization(data, "scalar" if kind == "scalar" else "diagonal", xp, present)
        return whitening(data, kind, xp, present)

    def rescaled(self, affine: Affine) -> Gaussian:
        return self if self.prior is None else self._with(prior=self.prior.rescaled(affine))

    def rescale_params(self, params: Params, affine: Affine) -> Params:
        change = affine.matrices if self.shape.affine_kind == "full" else affine.covariances
        return {"mean": affine.means(params["mean"]), "covariance": change(params["covariance"])}

    def n_free_params(self, n_components: int, data: Array) -> int:
        d = data.shape[1]
        return n_components * d + self.shape.n_free(n_components, d)

    def impute(self, params: Params, data: Array) -> Array:
        mean = params["mean"]
        return conditional_means(mean, self.shape.each(params["covariance"], *mean.shape), data)

    def sample(self, key: Array, params: Params, component: Array) -> Array:
        mean, factor = params["mean"][component], self.shape.factor(params["covariance"])
        noise = jax.random.normal(key, mean.shape, mean.dtype)
        factor = jnp.broadcast_to(factor, (mean.shape[0], *factor.shape)) if self.covariance == "tied" else factor[component]
        return mean + self.shape.apply(factor, noise)


def _expand(present: Array, like: Array) -> Array:
    return present.reshape(present.shape + (1,) * (like.ndim - 1))


def covariance_matrices(params: Params, covariance: str) -> np.ndarray:
    """(K, D, D) matrices of any kind of covariance, for plots and reports."""
    mean, value = np.asarray(params["mean"]), np.asarray(params["covariance"])
    k, d = mean.shape
    if covariance == "tied":
        return np.broadcast_to(value, (k, d, d))
    if covariance == "diag":
        return value[:, :, None] * np.eye(d)
    return value[:, None, None] * np.eye(d) if covariance == "spherical" else value
