"""Ability and items: the two-parameter logistic model by marginal maximum likelihood (Bock and Aitkin 1981)."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem import constraints as sets
from jaxem.data.validation import check_positive_int, check_rows, floating, numeric
from jaxem.latents.mixture import log_partition, posterior
from jaxem.model import Model, one_program
from jaxem.numerics.linalg import PRECISION
from jaxem.pytree import PyTree, static, struct
from jaxem.types import Moments, Params, Rows

#: Slope at which an item has become a step: a quarter of a standard deviation of ability takes the odds from 1:20 to 20:1,
#: between two nodes of the quadrature. Published slopes stay below 5.
STEEP = 25.0
#: Abilities beyond which there is nobody, and logit at which nobody answers otherwise.
REACH, CERTAIN = 4.0, 16.0


@struct
class ItemResponse(Model):
    """P(person n answers item j correctly) = logistic(slope_j ability_n + intercept_j), ability_n ~ Normal(0, 1).

    The integral over abilities is a sum over Gauss-Hermite nodes: expected counts of right and wrong answers at each
    node are all that the M-step, by Optax, needs of the data. Abilities and slopes may all change sign together.

    Parameters: `slope` and `intercept` (J,). Data: (N, J) of 0 and 1, NaN where an item was not put.

    Attributes:
        n_nodes: Q, nodes of the quadrature.
        rasch: whether all items share one slope; then `slope` is ().
    """

    n_nodes: int = static(default=41)
    rasch: bool = static(default=False)

    constraints: ClassVar[Any] = {"slope": sets.Real(), "intercept": sets.Real()}
    needs_key: ClassVar[bool] = False
    missing: ClassVar[str] = "marginal"  # type: ignore[misc]

    def _nodes(self, dtype: Any) -> tuple[Array, Array]:
        """(Q,) abilities and their log-weights."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(self.n_nodes)
        kept = weights > np.finfo(np.float32).tiny  # the outermost of many weigh nothing
        weights = weights[kept] / weights[kept].sum()
        return jnp.asarray(nodes[kept], dtype), jnp.asarray(np.log(weights), dtype)

    def natural(self, params: Params) -> dict[str, Array]:
        """Leaves `log_right` and `log_wrong` (J, Q): t = answers of people at each node."""
        nodes, _ = self._nodes(params["intercept"].dtype)
        logit = jnp.broadcast_to(params["slope"], params["intercept"].shape)[:, None] * nodes + params["intercept"][:, None]
        return {"log_right": jax.nn.log_sigmoid(logit), "log_wrong": jax.nn.log_sigmoid(-logit)}

    def at_floor(self, params: Params) -> dict[str, Array]:
        """Slopes that have run off: items that tell the same, of which one tells where the other stands."""
        return {**super().at_floor(params), "slope": jnp.abs(params["slope"]) >= STEEP}

    def at_limit(self, params: Params) -> dict[str, Array]:
        """Intercepts of items that all got right, or none."""
        far = jnp.abs(params["intercept"]) - REACH * jnp.abs(params["slope"]) >= CERTAIN
        return {**super().at_limit(params), "intercept": far}

    def _scores(self, natural: PyTree, data: Array) -> Array:
        """(Q, n) log-weight of each node."""
        dtype = natural["log_right"].dtype
        _, log_weight = self._nodes(dtype)
        right, wrong = (data == 1).astype(dtype), (data == 0).astype(dtype)
        given = jnp.matmul(natural["log_right"].T, right.T, precision=PRECISION)
        return given + jnp.matmul(natural["log_wrong"].T, wrong.T, precision=PRECISION) + log_weight[:, None]

    def log_marginal(self, natural: PyTree, data: Array, rows: Rows) -> Array:
        return log_partition(self._scores(natural, data), hard=rows.hard)

    def validate(self, data: Any) -> np.ndarray:
        """(N, J) floats.

        Raises:
            ValueError: for a wrong rank, or answers that are not 0, 1 or NaN.
        """
        check_positive_int(self.n_nodes, "n_nodes", 2)
        array = numeric(data, "data")
        if array.ndim != 2 or not array.shape[1]:
            raise ValueError(f"data must have shape (N, J), a row for each person; got shape {array.shape}")
        array = floating(array, "data")
        check_rows(array, np.isnan(array) | (array == 0) | (array == 1), "0, 1, or NaN where missing")
        return array

    def check_fit(self, data: Array) -> None:
        unseen = np.isnan(data).all(0)
        if unseen.any():
            raise ValueError(f"data must hold answers to every item; column {int(unseen.argmax())} has none")

    def template(self, data: Array) -> Params:
        zero = jnp.zeros((data.shape[1],), data.dtype)
        return {"slope": jnp.ones((), data.dtype) if self.rasch else zero + 1, "intercept": zero}

    def initialize(self, key: Array | None, data: Array, weight: Array) -> Params:
        """Slopes of one, intercepts from the shares of right answers."""
        del key
        seen = ~jnp.isnan(data)
        right = weight @ (data == 1) + 0.5
        wrong = weight @ (seen & (data == 0)) + 0.5
        # A normal ability flattens the logistic curve, by about a sixth at a slope of one.
        return {**self.template(data), "intercept": 1.2 * (jnp.log(right) - jnp.log(wrong)).astype(data.dtype)}

    @one_program
    def posterior(self, params: Params, data: Array) -> Moments:
        """Of the abilities."""
        nodes, _ = self._nodes(params["intercept"].dtype)
        share = posterior(self._scores(self.natural(params), data))
        mean = jnp.matmul(nodes, share, precision=PRECISION)
        return Moments(mean, (jnp.square(nodes[:, None] - mean) * share).sum(0))

    def n_free_params(self, data: Array) -> int:
        return data.shape[1] + (1 if self.rasch else data.shape[1])

    @one_program
    def sample(self, key: Array, params: Params, n: int) -> Array:
        """(n, J) answers of n people."""
        who, what = jax.random.split(key)
        ability = jax.random.normal(who, (n, 1), params["intercept"].dtype)
        right = jax.random.bernoulli(what, jax.nn.sigmoid(ability * params["slope"] + params["intercept"]))
        return right.astype(ability.dtype)
