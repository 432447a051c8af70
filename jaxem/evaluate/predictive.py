"""Mean and covariance of the next observation under a fitted mixture or chain."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxem.data.boundary import accepted
from jaxem.families.gaussian import Gaussian
from jaxem.families.student_t import StudentT
from jaxem.latents.chain import forecast
from jaxem.model import Model
from jaxem.models.chains.hmm import HMM
from jaxem.models.chains.inference import last_belief
from jaxem.models.factor_analysis import FactorAnalysis
from jaxem.models.mixture import Mixture
from jaxem.numerics.linalg import PRECISION
from jaxem.numerics.logs import safe_log
from jaxem.pytree import PyTree
from jaxem.types import Params


def predictive_moments(model: Model, params: Params, data: PyTree) -> tuple[Array, Array]:
    """(D,) mean and (D, D) covariance of the observation that comes next; the covariance is positive definite.

    The spread of the components' means counts, and for a chain what the data say of the state that comes next.

    Args:
        model: a `Mixture`, or an `HMM` (then of the first sequence), of `Gaussian` or `StudentT` components; or a
            `FactorAnalysis`.
        params: parameters.
        data: what came before; a mixture does not look at it.

    Raises:
        TypeError: for other models.
        ValueError: for t components whose variance is infinite, df <= 2.
    """
    if isinstance(model, Mixture):
        family, components, share = model.family, params["components"], params["weights"]
    elif isinstance(model, FactorAnalysis):
        return params["mean"], model.covariance(params)
    elif isinstance(model, HMM):
        family, components = model.emission, params["emission"]
        now = last_belief(model.chain(params, accepted(model, params, data)))
        share = forecast(now, safe_log(params["transition"]), 1)[:, 0, 0]
    else:
        raise TypeError(f"model must be a Mixture, an HMM or a FactorAnalysis; got {type(model).__name__}")
    means, covariances = _moments(family, components)
    mean = share @ means
    gaps = means - mean
    within = jnp.einsum("k,kij->ij", share, covariances, precision=PRECISION)
    return mean, within + jnp.einsum("k,ki,kj->ij", share, gaps, gaps, precision=PRECISION)


def _moments(family: Any, components: Params) -> tuple[Array, Array]:
    """(K, D) means and (K, D, D) covariances."""
    if isinstance(family, Gaussian):
        kind, spread, factor = family.covariance, components["covariance"], 1.0
    elif isinstance(family, StudentT):
        df = components["df"]
        if not bool((df > 2).all()):
            raise ValueError(f"every component must have df > 2 for its variance to exist; got {df}")
        kind, spread, factor = family.covariance, components["scale"], (df / (df - 2))[:, None, None]
    else:
        raise TypeError(f"components must be Gaussian or StudentT; got {type(family).__name__}")
    means = components["mean"]
    eye = jnp.eye(means.shape[1], dtype=means.dtype)
    if kind in ("diag", "spherical"):
        spread = jnp.broadcast_to(spread[:, None] if kind == "spherical" else spread, means.shape)[:, :, None] * eye
    return means, jnp.broadcast_to(spread, (*means.shape, means.shape[1])) * factor
