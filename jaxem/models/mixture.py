"""Mixtures over any family, and the named Gaussian one."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from jaxem import constraints as sets
from jaxem.data.validation import check_positive_int
from jaxem.families.base import Family
from jaxem.families.gaussian import Gaussian
from jaxem.init import Init, KMeansPlusPlus, Partitioned
from jaxem.latents.mixture import label_bias, log_partition, posterior
from jaxem.model import one_program
from jaxem.models.family_model import FamilyModel
from jaxem.numerics.blocks import choose_block_size, cut, fold, n_rows
from jaxem.numerics.linalg import PRECISION
from jaxem.numerics.logs import most_probable, safe_log
from jaxem.priors import Dirichlet
from jaxem.pytree import PyTree, static, struct
from jaxem.types import Params, Rows


@struct
class Mixture(Partitioned, FamilyModel):
    """p(x) = sum over k of weights[k] * family(x | components[k]).

    Parameters: `weights` (K,) and `components`, the family's parameters.
    Data: whatever the family takes, rows first. Labels: (N,) integers, -1 for unknown.

    Attributes:
        n_components: K.
        family: density of a component.
        prior: Dirichlet prior on the weights, or None.
    """

    n_components: int = static()
    family: Family = Gaussian()
    prior: Dirichlet | None = None

    part: ClassVar[str] = "components"
    family_field: ClassVar[str] = "family"
    exchangeable: ClassVar[str] = "n_components"
    own_constraints: ClassVar[dict[str, Any]] = {"weights": sets.Simplex()}

    @property
    def n_labels(self) -> int:
        """Labels are 0 .. K - 1."""
        return self.n_components

    def natural(self, params: Params) -> dict[str, Any]:
        """Leaves `log_weights` (K,) and `components`."""
        return {"log_weights": safe_log(params["weights"]), "components": self.family.natural(params["components"])}

    def local_scores(self, natural: PyTree, data: PyTree, rows: Rows) -> Array:
        """(K, n) log weights[k] p(x_n | k), -inf where a label excludes k."""
        own = self.family.hard_scores if rows.hard else self.family.scores
        given = own(natural["components"], data) if rows.scores is None else rows.scores.T
        if given.ndim != 2 or len(given) != self.n_components:
            wanted = f"log-densities (K, n), here K={self.n_components}"
            raise TypeError(f"{type(self.family).__name__}.scores must give {wanted}; got shape {given.shape}")
        scores = natural["log_weights"][:, None] + given
        return scores if rows.labels is None else scores + label_bias(rows.labels, self.n_components, scores.dtype)

    def log_marginal(self, natural: PyTree, data: PyTree, rows: Rows) -> Array:
        return log_partition(self.local_scores(natural, data, rows), hard=rows.hard)

    def m_step(self, stats: PyTree, params: Params) -> Params:
        """Relative weights; the family's closed form where it has one."""
        counts = jnp.maximum(stats["log_weights"], 0)
        total = counts.sum()
        weights = jnp.where(total > 0, counts / jnp.where(total > 0, total, 1), params["weights"])
        return {"weights": weights, "components": self.family_m_step(stats, params)}

    def own_pseudo_stats(self, params: Params) -> dict[str, Array] | None:
        return None if self.prior is None else {"log_weights": self.prior.pseudo_counts(params["weights"])}

    # --- the boundary of fit -----------------------------------------------------------------
    def validate(self, data: PyTree) -> PyTree:
        check_positive_int(self.n_components, "n_components")
        return self.family.validate(data)

    def check_fit(self, data: PyTree) -> None:
        self.family.check_fit(data)
        if n_rows(data) < self.n_components:
            raise ValueError(f"data must have at least n_components={self.n_components} rows; got {n_rows(data)}")

    def template(self, data: PyTree) -> Params:
        """Valid parameters that know nothing, of the right shapes."""
        components = self.family.template(data, self.n_components)
        dtype = jax.tree.leaves(components)[0].dtype
        return {"weights": jnp.full((self.n_components,), 1 / self.n_components, dtype), "components": components}

    def features(self, data: PyTree) -> Array:
        return self.family.features(data)

    def initialize(self, key: Array | None, data: PyTree, weight: Array) -> Params:
        return self.initialize_by(KMeansPlusPlus(), key, data, weight)

    def initialize_by(self, strategy: Init, key: Array | None, data: PyTree, weight: Array) -> Params:
        own = self.family.own_start(self, strategy, key, data, weight)
        return super().initialize_by(strategy, key, data, weight) if own is None else own

    def start(self, responsibilities: Array, data: PyTree, weight: Array, smooth: bool) -> Params:
        family, data = self.family.completed(data)
        model, template = self.with_parts([family]), self.template(data)
        # With all natural parameters at zero every score is equal: the posterior is what is given.
        natural = jax.tree.map(jnp.zeros_like, self.natural(template))
        packed, pull = jax.vjp(model.pack, natural)
        labels = responsibilities
        if jnp.issubdtype(labels.dtype, jnp.floating):
            labels = safe_log(labels)
        n = weight.shape[0]
        blocks = cut(data, weight, labels, choose_block_size(n, self.n_components, 4, jax.default_backend()))

        # Without labels the posterior is uniform: K of it is one row's worth for each component, on any scale of weights.
        share = self.n_components * jnp.square(weight / weight.sum()).sum() if smooth else 0.0

        def total(eta, block):
            given = model.log_marginal(eta, block.data, Rows(labels=block.labels))
            return block.weight @ (given + share * model.log_marginal(eta, block.data, Rows()))

        (stats,) = pull(fold(lambda block: jax.grad(total)(packed, block), blocks))
        weights = stats["log_weights"] / stats["log_weights"].sum()
        return {"weights": weights, "components": self.family.start(stats["components"], template["components"])}

    # --- after the fit -----------------------------------------------------------------------
    @one_program
    def posterior(self, params: Params, data: PyTree) -> Array:
        """(N, K) responsibilities p(k | x_n)."""
        model = self.exact(params)
        return posterior(model.local_scores(model.pack(model.natural(params)), data, self.rows(params, data))).T

    @one_program
    def predict(self, params: Params, data: PyTree) -> Array:
        """(N,) most probable component."""
        return most_probable(self.posterior(params, data))

    @one_program
    def impute(self, params: Params, data: PyTree) -> Array:
        """(N, D) rows with conditional means in place of what is missing, for families that take NaN as missing."""
        each = self.family.impute(params["components"], data)
        return jnp.einsum("nk,knd->nd", self.posterior(params, data), each, precision=PRECISION)

    def n_free_params(self, data: PyTree) -> int:
        return self.n_components - 1 + self.family.n_free_params(self.n_components, data)

    @one_program
    def sample(self, key: Array, params: Params, n: int) -> PyTree:
        what, component = self._drawn(key, params, n)
        return self.family.sample(what, params["components"], component)

    def sample_like(self, key: Array, params: Params, data: PyTree) -> PyTree:
        what, component = self._drawn(key, params, n_rows(data))
        return self.family.sample_like(what, params["components"], component, data)

    def _drawn(self, key: Array, params: Params, n: int) -> tuple[Array, Array]:
        """A key for the rows, and their components (n,)."""
        which, what = jax.random.split(key)
        return what, jax.random.categorical(which, safe_log(params["weights"]), shape=(n,))


def GaussianMixture(n_components: int, covariance: str = "full", **options: Any) -> Mixture:  # noqa: N802
    """A mixture of Gaussians.

    Args:
        n_components: K.
        covariance: "full", "tied", "diag" or "spherical".
        **options: `floor`, `prior`, `missing` of `Gaussian`; `weights_prior`, a `Dirichlet`.

    Raises:
        ValueError: for an unknown covariance.
    """
    weights_prior = options.pop("weights_prior", None)
    return Mixture(n_components, Gaussian(covariance=covariance, **options), weights_prior)
