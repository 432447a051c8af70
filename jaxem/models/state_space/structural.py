"""State space models that have names: a level, a level with a slope, factors that several series share."""

from __future__ import annotations

from typing import Any

import numpy as np
from jax import Array

from jaxem.models.state_space.state_space import StateSpace


def LocalLevel(initial_variance: float | Array | None = None, **options: Any) -> StateSpace:  # noqa: N802
    """A random walk plus noise (Harvey 1989; Durbin and Koopman 2012, chapter 2), for series (T,).

    y_t = x_t + Normal(0, observation_noise), x_t = x_{t-1} + Normal(0, state_noise).

    Args:
        initial_variance: variance of x_1, whose mean is zero; None: diffuse, nothing is known of it.
        **options: of `StateSpace`.
    """
    known = {"transition": np.eye(1), "observation": np.eye(1)}
    return _known(1, initial_variance, known, {"state_noise": "diag"} | options)


def LocalLinearTrend(initial_variance: float | Array | None = None, **options: Any) -> StateSpace:  # noqa: N802
    """A level whose slope is a random walk, plus noise (Durbin and Koopman 2012, section 3.2.1), for series (T,).

    The states are level and slope, with noise of their own each. `fixed={"state_noise": [nan, 0]}` keeps the slope.

    Args:
        initial_variance: variances of the first level and slope, whose means are zero; None: diffuse.
        **options: of `StateSpace`.
    """
    known = {"transition": np.array([[1.0, 1.0], [0.0, 1.0]]), "observation": np.array([[1.0, 0.0]])}
    return _known(2, initial_variance, known, {"state_noise": "diag"} | options)


def DynamicFactor(n_factors: int, initial_variance: float | Array | None = 1.0, **options: Any) -> StateSpace:  # noqa: N802
    """Factors that follow a vector autoregression and drive many series at once (Geweke 1977).

    Their noise is the identity, which sets their scale; a rotation of the factors is left free. For standardised series.

    Args:
        n_factors: K.
        initial_variance: variance of the first factors, whose means are zero; None: diffuse.
        **options: of `StateSpace`.
    """
    return _known(n_factors, initial_variance, {"state_noise": np.eye(n_factors)}, options)


def _known(k: int, variance: Any, known: dict[str, Any], options: dict[str, Any]) -> StateSpace:
    if variance is None:
        options = {"initial": "diffuse"} | options
    else:
        known = known | {"initial_mean": np.zeros(k), "initial_covariance": variance * np.eye(k)}
    return StateSpace(k, fixed=known | options.pop("fixed", {}), **options)
