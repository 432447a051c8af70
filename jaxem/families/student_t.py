"""Multivariate t components: Gaussian ones whose data have latent weights, so that outliers count for little."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem import constraints as sets
from jaxem.data.validation import is_traced
from jaxem.families.base import Family
from jaxem.families.composite import Composite
from jaxem.families.covariance import SHAPES
from jaxem.families.gaussian import Gaussian
from jaxem.numerics.special import ceiling, gamma_normalizer, gamma_shape, scored_shape, stirling_rest
from jaxem.pytree import PyTree, static, struct
from jaxem.types import Params

#: Least estimated degrees of freedom.
LEAST_DF = 0.05


@struct
class StudentT(Composite, Family):
    """Multivariate t density; parameters `mean` (K, D), `scale` and `df` (K,), the degrees of freedom.

    `scale` is a matrix as `Gaussian` has its covariance; the covariance is scale * df / (df - 2) where df > 2. Each
    row is Gaussian with covariance scale / u, u from a gamma density of mean one and shape df / 2 (Liu and Rubin
    1995; Peel and McLachlan 2000), which makes the M-step that of a weighted Gaussian and of a gamma density.

    Attributes:
        covariance: shape of `scale`: "full" (K, D, D), "tied" (D, D), "diag" (K, D) or "spherical" (K,).
        df: degrees of freedom to hold all components at, or None to estimate those of each.
        floor: least eigenvalue of a scale, as `Gaussian` has it; a component at the floor makes a restart DEGENERATE.
        missing: "marginal" where entries may be NaN, as `Gaussian` has it; None refuses them.
    """

    covariance: str = static(SHAPES, default="full")
    df: float | Array | None = None
    floor: float | Array = 1e-8
    missing: str | None = static((None, "marginal"), default=None)
    about: Gaussian | None = None

    @property
    def gaussian(self) -> Gaussian:
        """The density given u = 1, with the origin and the form that its statistics have."""
        return Gaussian(self.covariance, self.floor, missing=self.missing) if self.about is None else self.about

    family_field: ClassVar[str] = "about"

    @property
    def parts(self) -> tuple[Gaussian]:
        return (self.gaussian,)

    def split(self, tree: PyTree) -> tuple[PyTree]:
        return (tree,)

    def joined(self, tree: PyTree, parts: Sequence[PyTree]) -> PyTree:
        return {**tree, **parts[0]}

    def inner(self, params: Params) -> Params:
        return {"mean": params["mean"], "covariance": params["scale"], "df": params["df"]}

    def outer(self, params: Params) -> Params:
        return {"mean": params["mean"], "scale": params["covariance"], "df": params["df"]}

    @property
    def constraints(self) -> dict[str, Any]:
        df = sets.Positive() if self.df is None else sets.Fixed()
        return {"mean": sets.Real(), "scale": self.gaussian.shape.constraint, "df": df}

    def _degrees(self, like: Array) -> Array:
        return like if self.df is None else jnp.broadcast_to(jnp.asarray(self.df, like.dtype), like.shape)

    def natural(self, params: Params) -> dict[str, Array]:
        """Leaves of `Gaussian`, all but `log_det` times u; `half_df` (t = log u - u + 1) and `normalizer` (t = 1)."""
        half = self._degrees(params["df"]) / 2
        return {**self.gaussian.natural(self.inner(params)), "half_df": half, "normalizer": gamma_normalizer(half)}

    def pack(self, natural: PyTree) -> PyTree:
        """The quadratic that multiplies u, packed by `Gaussian`, and what does not."""
        if self.missing:
            observed = self.gaussian.pack_observed(natural)
            return {"quadratic": observed, "constant": natural["normalizer"], "half_df": natural["half_df"]}
        d = natural["linear"].shape[-1]
        constant = natural["log_det"] - d * math.log(2 * math.pi) / 2 + natural["normalizer"]
        return {"quadratic": self.gaussian.pack_quadratic(natural, 0), "constant": constant, "half_df": natural["half_df"]}

    def scores(self, natural: PyTree, data: Array) -> Array:
        half, constant, half_d = natural["half_df"][:, None], natural["constant"][:, None], data.shape[1] / 2
        if self.missing:
            quadratic, rest, n_there = natural["quadratic"].terms(data, self.gaussian.patterns)
            constant, half_d = constant + rest, n_there / 2
        else:
            quadratic = self.gaussian.scores(natural["quadratic"], data)
        # The integral over u leaves gammaln(shape) - shape log(half - quadratic), by Stirling's formula.
        mixed = half > 0
        shape = jnp.where(mixed, half, 1) + half_d
        ratio = jnp.where(mixed, -quadratic - half_d, 0) / shape  # (half - quadratic) / shape - 1
        integral = stirling_rest(shape) - half_d - jnp.log(shape) / 2 - shape * jnp.log1p(ratio)
        # Natural parameters of zero ask for moments: u = 1.
        return constant + jnp.where(mixed, integral, quadratic)

    def m_step(self, stats: PyTree, params: Params) -> Params:
        """Moments weighted by u, and the shape of u's density; a component without data keeps its parameters."""
        moments = self.gaussian.m_step(stats, self.inner(params))
        df = self._degrees(params["df"])
        if self.df is None:
            df = self._estimated(stats, df, lambda statistic: gamma_shape(statistic, LEAST_DF / 2, ceiling(df.dtype) / 2))
        return self.outer({**moments, "df": df})

    def at_limit(self, params: Params) -> dict[str, Array]:
        """Degrees of freedom at which the density is Gaussian."""
        free = self.df is None
        return {**super().at_limit(params), "df": (params["df"] >= 0.999 * ceiling(params["df"].dtype)) & free}

    @staticmethod
    def _estimated(stats: PyTree, df: Array, half: Callable[[Array], Array]) -> Array:
        """Twice what `half` makes of the mean statistic; a component without data keeps its own."""
        count = stats["normalizer"]
        return jnp.where(count > 0, 2 * half(stats["half_df"] / jnp.where(count > 0, count, 1)), df)

    @property
    def scoring_step(self) -> Any:  # type: ignore[override]
        """Towards the normal density, the limit, EM creeps."""
        return self._scored if self.df is None else None

    def _scored(self, stats: PyTree, params: Params, new: Params) -> Params:
        df, d = params["df"], params["mean"].shape[-1]
        known = d * (d + 2) / 8  # Var(q^2 - 2 (d + 2) q) / 64 of a chi-squared q
        high = ceiling(df.dtype) / 2
        scored = self._estimated(stats, df, lambda statistic: scored_shape(statistic, df / 2, known, LEAST_DF / 2, high))
        return {**new, "df": scored}

    def start(self, stats: PyTree, template: Params) -> Params:
        """Plain moments, which the statistics of natural parameters of zero are."""
        moments = self.gaussian.m_step(stats, self.inner(template))
        # What a covariance exceeds the scale by, where it is finite.
        shrink = jnp.clip(1 - 2 / template["df"], 0.25).min()
        return {"mean": moments["mean"], "scale": moments["covariance"] * shrink, "df": template["df"]}

    def template(self, data: Array, n_components: int) -> Params:
        df = self._degrees(jnp.full((n_components,), 10, data.dtype))
        return self.outer({**self.gaussian.template(data, n_components), "df": df})

    def validate(self, data: Any) -> Any:
        if self.df is not None and not is_traced(self.df):
            df = np.asarray(self.df)
            if not (np.isfinite(df) & (df > 0)).all():
                raise ValueError(f"df must be None or positive and finite; got {self.df}")
        return self.gaussian.validate(data)

    def check_fit(self, data: Any) -> None:
        self.gaussian.check_fit(data)

    def features(self, data: Array) -> Array:
        return self.gaussian.features(data)

    def completed(self, data: Array) -> tuple[StudentT, Array]:
        family, data = self.gaussian.completed(data)
        return dataclasses.replace(self, missing=None, about=family), data

    def n_free_params(self, n_components: int, data: Array) -> int:
        return self.gaussian.n_free_params(n_components, data) + (n_components if self.df is None else 0)

    def impute(self, params: Params, data: Array) -> Array:
        return self.gaussian.impute(self.inner(params), data)

    def sample(self, key: Array, params: Params, component: Array) -> Array:
        first, second = jax.random.split(key)
        mean, half = params["mean"], self._degrees(params["df"])[component] / 2
        noise = self.gaussian.sample(first, {"mean": jnp.zeros_like(mean), "covariance": params["scale"]}, component)
        u = jax.random.gamma(second, half, dtype=mean.dtype) / half
        return mean[component] + noise / jnp.sqrt(u)[:, None]
