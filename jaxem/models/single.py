"""One density for all data: what EM is for here are missing entries and the weights of a t density."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.families.base import Family
from jaxem.families.composite import Composite
from jaxem.families.gaussian import Gaussian
from jaxem.families.student_t import StudentT
from jaxem.init import KMeansPlusPlus
from jaxem.model import Model, one_program
from jaxem.models.mixture import Mixture
from jaxem.numerics.blocks import n_rows
from jaxem.pytree import PyTree, struct
from jaxem.types import Params, Rows


def _stacked(params: Params) -> Params:
    """Parameters of K = 1 components."""
    return jax.tree.map(lambda x: x[None], params)


def _only(params: Params) -> Params:
    return jax.tree.map(lambda x: x[0], params)


@struct
class Single(Composite, Model):
    """p(x) = family(x): a family by itself, as a model to fit.

    Parameters: the family's, without the axis of components. Data: whatever the family takes.
    Starting values are the M-step from all rows, gaps filled by the means of their columns; with a key each row
    counts a random amount there (exponential weights), which breaks the symmetry of a saddle. A family with a start of its
    own (`Family.own_start`, as that of a `density`) takes that.

    Attributes:
        family: the density, all of whose parameters lead with the axis of components: not with tied covariances, of which
            there is nothing to tie.
    """

    family: Family

    needs_key: ClassVar[bool] = False

    family_field: ClassVar[str] = "family"

    def split(self, tree: PyTree) -> Sequence[PyTree]:
        return (tree,)

    def joined(self, tree: PyTree, parts: Sequence[PyTree]) -> PyTree:
        del tree
        return parts[0]

    def inner(self, params: Params) -> Params:
        return _stacked(params)

    def outer(self, params: Params) -> Params:
        return _only(params)

    @property
    def scores(self) -> Any:
        """Rows of log-densities, where the family has no finite statistics."""
        return None if self.family.log_density is None else self._density_scores

    def _density_scores(self, params: Params, data: PyTree) -> Array:
        return self.family.log_density(_stacked(params), data)[:, 0]

    def log_marginal(self, natural: PyTree, data: PyTree, rows: Rows) -> Array:
        return self.family.scores(natural, data)[0] if rows.scores is None else rows.scores  # type: ignore[return-value]

    # --- the boundary of fit -----------------------------------------------------------------
    def validate(self, data: PyTree) -> PyTree:
        if getattr(self.family, "covariance", None) == "tied":
            raise ValueError("covariance must be 'full', 'diag' or 'spherical' for a single density; got 'tied'")
        return self.family.validate(data)

    def check_fit(self, data: PyTree) -> None:
        self.family.check_fit(data)
        shapes = jax.eval_shape(lambda: self.family.template(data, 1))
        if any(x.shape[:1] != (1,) for x in jax.tree.leaves(shapes)):
            kind = type(self.family).__name__
            raise ValueError(f"Single leaves out the axis of components, with which not all of {kind}'s parameters lead;"
                             " use jaxem.Mixture(1, family)")  # fmt: skip

    def template(self, data: PyTree) -> Params:
        return _only(self.family.template(data, 1))

    def initialize(self, key: Array | None, data: PyTree, weight: Array) -> Params:
        mixture = Mixture(1, self.family)
        own = self.family.own_start(mixture, KMeansPlusPlus(), key, data, weight)
        if own is not None:
            return _only(own["components"])
        if key is not None:
            weight = weight * jax.random.exponential(key, weight.shape, weight.dtype)
        rows = jnp.zeros(weight.shape, jnp.int32)
        return _only(mixture.start(rows, data, weight, smooth=False)["components"])

    # --- after the fit -----------------------------------------------------------------------
    def impute(self, params: Params, data: PyTree) -> Array:
        """(N, D) rows with conditional means in place of what is missing, for families that take NaN as missing."""
        return self.family.impute(_stacked(params), jnp.asarray(data))[0]

    def n_free_params(self, data: PyTree) -> int:
        return self.family.n_free_params(1, data)

    @one_program
    def sample(self, key: Array, params: Params, n: int) -> PyTree:
        return self.family.sample(key, _stacked(params), jnp.zeros((n,), jnp.int32))

    def sample_like(self, key: Array, params: Params, data: PyTree) -> PyTree:
        return self.family.sample_like(key, _stacked(params), jnp.zeros((n_rows(data),), jnp.int32), data)


def MultivariateNormal(covariance: str = "full", missing: str | None = "marginal", **options: Any) -> Single:  # noqa: N802
    """A multivariate normal density with entries missing at random (Dempster, Laird and Rubin 1977, section 4.1.3).

    Parameters: `mean` (D,) and `covariance` (D, D), (D,) or (). Data: (N, D), NaN where an entry is missing.

    Args:
        covariance: "full", "diag" or "spherical".
        missing: "marginal", or None to refuse NaN.
        **options: `floor`, `prior` of `Gaussian`.
    """
    return Single(Gaussian(covariance, missing=missing, **options))


def MultivariateT(  # noqa: N802
    df: float | Array | None = None, covariance: str = "full", missing: str | None = "marginal", **options: Any
) -> Single:
    """A multivariate t density with entries missing at random (Liu and Rubin 1995; Liu, Rubin and Wu 1998).

    Parameters: `mean` (D,), `scale` (D, D), (D,) or (), and `df` (), the degrees of freedom. Data: (N, D), NaN where
    an entry is missing.

    Args:
        df: degrees of freedom to hold, or None to estimate them.
        covariance: shape of `scale`: "full", "diag" or "spherical".
        missing: "marginal", or None to refuse NaN.
        **options: `floor` of `StudentT`.
    """
    return Single(StudentT(covariance, df, missing=missing, **options))
