"""A linear model in which every group of data has a level of its own (Laird and Ware 1982)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem import constraints as sets
from jaxem.data.validation import floating, numeric
from jaxem.model import Model, one_program
from jaxem.models.normal_response import normal_m_step, normal_natural
from jaxem.numerics.floors import RELATIVE, known_floor, least_variance
from jaxem.numerics.linalg import PRECISION
from jaxem.numerics.logs import divided
from jaxem.pytree import PyTree, struct
from jaxem.types import Moments, Params, Rows


@struct
class RandomIntercept(Model):
    """y_nt = intercept + inputs_nt . coefficients + level_n + noise, level_n ~ Normal(0, level_variance).

    Parameters: `coefficients` (P + 1,), the intercept last; `level_variance` and `noise_variance`.
    Data: (N, T) responses, a row for each group, NaN where a group has fewer; or a dict of `y` (N, T) and
    `inputs` (N, T, P).

    Attributes:
        floor: least noise variance, in the squared units of y; where it is reached a restart is DEGENERATE. None: 1e-8
            times the variance of y. A level variance of zero is a model without levels, and no collapse.
    """

    floor: float | Array | None = None

    constraints: ClassVar[Any] = {
        "coefficients": sets.Real(),
        "level_variance": sets.Positive(),
        "noise_variance": sets.Positive(),
    }
    needs_key: ClassVar[bool] = False
    missing: ClassVar[str] = "marginal"  # type: ignore[misc]

    def natural(self, params: Params) -> dict[str, Any]:
        """`noise` as `normal_response.normal_natural`, of y - level; `level_square` (t = level^2), `level_log` (t = 1)."""
        level = params["level_variance"]
        return {
            "noise": normal_natural(params["coefficients"], params["noise_variance"]),
            "level_square": -1 / (2 * level),
            "level_log": -(jnp.log(level) + math.log(2 * math.pi)) / 2,
        }

    def _parts(self, natural: PyTree, data: PyTree) -> tuple[Array, Array, Array]:
        """The exponent as c + b level + a level^2, each (n,)."""
        noise, (y, seen, z) = natural["noise"], _arrays(data)
        one_each = jnp.einsum("ntp,ntq,nt->npq", z, z, seen, precision=PRECISION)
        toward = jnp.matmul(z, noise["cross"], precision=PRECISION) * seen
        constant = noise["square"] * (y * y).sum(1) + (toward * y).sum(1) + (one_each * noise["gram"]).sum((1, 2))
        constant = constant + seen.sum(1) * noise["log_scale"] + natural["level_log"]
        linear = -2 * noise["square"] * y.sum(1) - toward.sum(1)
        return constant, linear, noise["square"] * seen.sum(1) + natural["level_square"]

    def log_marginal(self, natural: PyTree, data: PyTree, rows: Rows) -> Array:
        del rows
        constant, linear, square = self._parts(natural, data)
        return constant - linear * linear / (4 * square) + (math.log(math.pi) - jnp.log(-square)) / 2

    def m_step(self, stats: PyTree, params: Params) -> Params:
        """Least squares on what the levels leave, and their mean square (Laird and Ware 1982, section 4)."""
        coefficients, noise = normal_m_step(stats["noise"], params["noise_variance"], known_floor(self.floor))
        count = stats["level_log"]
        level = jnp.where(count > 0, divided(stats["level_square"], count), params["level_variance"])
        tiny = jnp.finfo(level.dtype).tiny
        return {"coefficients": coefficients, "level_variance": jnp.maximum(level, tiny), "noise_variance": noise}

    def at_floor(self, params: Params) -> dict[str, Array]:
        return {**super().at_floor(params), "noise_variance": params["noise_variance"] <= known_floor(self.floor)}

    def at_limit(self, params: Params) -> dict[str, Array]:
        lost = params["level_variance"] <= RELATIVE * params["noise_variance"]
        return {**super().at_limit(params), "level_variance": lost}

    def floored(self, data: PyTree, weight: Array | None) -> RandomIntercept:
        if self.floor is not None:
            return self
        y = data["y"] if isinstance(data, dict) else data
        each = None if weight is None else jnp.repeat(weight, y.shape[1])
        return dataclasses.replace(self, floor=least_variance(y.reshape(-1), each))

    def validate(self, data: Any) -> PyTree:
        """Floats of the right shapes.

        Raises:
            ValueError: for shapes that do not fit, infinities, missing inputs, or a group that holds nothing.
        """
        given = data if isinstance(data, dict) else {"y": data}
        if "y" not in given or not set(given) <= {"y", "inputs"}:
            raise ValueError(f"data must be y (N, T), or a dict of 'y' and 'inputs'; got {sorted(given)}")
        out = {name: floating(numeric(value, f"data {name}"), f"data {name}") for name, value in given.items()}
        y = out["y"]
        if y.ndim != 2 or ("inputs" in out and (out["inputs"].ndim != 3 or out["inputs"].shape[:2] != y.shape)):
            raise ValueError(f"data must be y (N, T) and inputs (N, T, P); got shapes {[x.shape for x in out.values()]}")
        if not y.shape[1]:
            raise ValueError(f"data y must have shape (N, T), T > 0; got {y.shape}")
        if np.isinf(y).any() or np.isnan(y).all(1).any():
            row = int(np.argmax(np.isinf(y).any(1) | np.isnan(y).all(1)))
            raise ValueError(f"data y must be finite, NaN where missing, with something in every group; see row {row}")
        if "inputs" in out and not np.isfinite(out["inputs"][~np.isnan(y)]).all():
            raise ValueError("data inputs must be finite wherever y is seen")
        if "inputs" in out:
            out["inputs"] = np.where(np.isfinite(out["inputs"]), out["inputs"], 0)
        return out if isinstance(data, dict) else y

    def template(self, data: PyTree) -> Params:
        one = jnp.ones((), _arrays(jax.tree.map(lambda x: x[:1], data))[0].dtype)
        width = _arrays(jax.tree.map(lambda x: x[:1], data))[2].shape[-1]
        return {"coefficients": jnp.zeros((width,), one.dtype), "level_variance": one, "noise_variance": one}

    def initialize(self, key: Array | None, data: PyTree, weight: Array) -> Params:
        """Least squares without levels; half of what it leaves to each variance."""
        del key
        y, seen, z = _arrays(data)
        each = weight[:, None] * seen
        stats = {
            "square": (each * y * y).sum(),
            "cross": jnp.einsum("nt,nt,ntp->p", each, y, z, precision=PRECISION),
            "gram": jnp.einsum("nt,ntp,ntq->pq", each, z, z, precision=PRECISION),
            "log_scale": each.sum(),
        }
        coefficients, variance = normal_m_step(stats, jnp.ones((), y.dtype))
        half = jnp.where(variance > 10 * jnp.finfo(y.dtype).tiny, variance, 1) / 2
        return {"coefficients": coefficients, "level_variance": half, "noise_variance": half}

    @one_program
    def posterior(self, params: Params, data: PyTree) -> Moments:
        """Of the levels: shrunken residual means."""
        _, linear, square = self._parts(self.natural(params), data)
        return Moments(-linear / (2 * square), -1 / (2 * square))

    def sample_like(self, key: Array, params: Params, data: PyTree) -> PyTree:
        """Responses in place of those of `data`, with its inputs, missing where those are."""
        y, seen, z = _arrays(data)
        first, second = jax.random.split(key)
        level = jnp.sqrt(params["level_variance"]) * jax.random.normal(first, (len(y), 1), y.dtype)
        noise = jnp.sqrt(params["noise_variance"]) * jax.random.normal(second, y.shape, y.dtype)
        drawn = jnp.matmul(z, params["coefficients"], precision=PRECISION) + level + noise
        drawn = jnp.where(seen > 0, drawn, jnp.nan)
        return {**data, "y": drawn} if isinstance(data, dict) else drawn

    def n_free_params(self, data: PyTree) -> int:
        return self.template(data)["coefficients"].shape[0] + 2


def _arrays(data: PyTree) -> tuple[Array, Array, Array]:
    """Responses (n, T) with zeros where none, 1 where there is one (n, T), and inputs and one (n, T, P + 1)."""
    y = jnp.asarray(data["y"] if isinstance(data, dict) else data)
    y = y.astype(jnp.result_type(y, 0.0))
    seen = ~jnp.isnan(y)
    one = jnp.ones((*y.shape, 1), y.dtype)
    z = jnp.concatenate([data["inputs"], one], -1) if isinstance(data, dict) and "inputs" in data else one
    return jnp.where(seen, y, 0), seen.astype(y.dtype), z
