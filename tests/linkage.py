"""Genetic linkage of 197 animals in four cells, the first of which merges two classes (Dempster, Laird and Rubin 1977)."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

import jaxem
from jaxem.constraints import UnitInterval
from jaxem.numerics.logs import lse, safe_log

COUNTS = np.array([125.0, 18.0, 20.0, 34.0])
CELLS = np.arange(4)
#: The positive root of the score, 197 pi^2 - 15 pi - 68 = 0.
PI = (15 + np.sqrt(53809)) / 394


def cells(params, cell):
    """Log-probabilities of the two classes that the first cell merges; the others have one."""
    pi = params["pi"]
    zero = jnp.zeros_like(pi)
    table = jnp.array([[zero + 0.5, pi / 4], [(1 - pi) / 4, zero], [(1 - pi) / 4, zero], [pi / 4, zero]])
    return safe_log(table[cell])


def natural(params):
    return {"log_pi": jnp.log(params["pi"]), "log_rest": jnp.log1p(-params["pi"])}


def marginal(eta, data):
    """The same with the counts as one datum."""
    first = lse(jnp.stack([jnp.log(jnp.full(1, 0.5, data.dtype)), (jnp.log(0.25) + eta["log_pi"])[None]]), 0)
    rest = jnp.log(0.25) + eta["log_rest"]
    return data @ jnp.stack([first[0], rest, rest, jnp.log(0.25) + eta["log_pi"]])


def m_step(stats, params):
    del params
    return {"pi": stats["log_pi"] / (stats["log_pi"] + stats["log_rest"])}


def by_cells(**changed) -> jaxem.Model:
    """As a log_joint; fit it to CELLS with COUNTS as weights."""
    given = {"fn": cells, "init": {"pi": 0.5}, "constraints": {"pi": UnitInterval()}, **changed}
    return jaxem.log_joint(given.pop("fn"), **given)


def by_counts(m_step=None) -> jaxem.Model:
    """As a log_marginal; fit it to COUNTS[None]."""
    return jaxem.log_marginal(
        natural=natural, log_marginal=marginal, m_step=m_step, init={"pi": 0.5}, constraints={"pi": UnitInterval()}
    )
