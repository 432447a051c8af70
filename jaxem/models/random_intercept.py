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
from jaxem.models.normal_response import normal_m_step, normal_natural, normal_recentered
from jaxem.numerics.affine import LinearUnits, linear_units
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
    origin: Any = None

    constraints: ClassVar[Any] = {
        "coefficients": sets.Real(),
        "level_variance": sets.Positive(),
        "noise_variance": sets.Positive(),
    }
    needs_key: ClassVar[bool] = False
    missing: ClassVar[str] = "marginal"  # type: ignore[misc]

    def centered(self, params: Params) -> RandomIntercept:
        """Statistics are those of residuals about the current coefficients, so that a good fit does not cancel."""
        return dataclasses.replace(self, origin=params["coefficients"])

    def recentered(self, stats: PyTree, params: Params) -> PyTree:
        return {**stats, "noise": normal_recentered(stats["noise"], params["coefficients"] - self.origin)}

    def natural(self, params: Params) -> dict[str, Any]:
        """`noise` as `normal_response.normal_natural`, of y - inputs . origin - level; and of the level.

        `level_square` (t = level^2), `level_log` (t = 1).
        """
        level = params["level_variance"]
        change = params["coefficients"] if self.origin is None else params["coefficients"] - self.origin
        return {
            "noise": normal_natural(change, params["noise_variance"]),
            "level_square": -1 / (2 * level),
            "level_log": -(jnp.log(level) + math.log(2 * math.pi)) / 2,
        }

    def _parts(self, natural: PyTree, data: PyTree) -> tuple[Array, Array, Array, Array]:
        """The exponent as c + b (level - mode) + a (level - mode)^2, and the mode, a constant about which nothing cancels."""
        noise, (y, seen, z) = natural["noise"], _arrays(data)
        if self.origin is not None:
            y = (y - jnp.matmul(z, jax.lax.stop_gradient(self.origin), precision=PRECISION)) * seen
        one_each = jnp.einsum("ntp,ntq,nt->npq", z, z, seen, precision=PRECISION)
        toward = jnp.matmul(z, noise["cross"], precision=PRECISION) * seen
        square = noise["square"] * seen.sum(1) + natural["level_square"]
        mode = jax.lax.stop_gradient((noise["square"] * y.sum(1) + toward.sum(1) / 2) / square)
        rest = (y - mode[:, None]) * seen
        constant = noise["square"] * (rest * rest).sum(1) + (toward * rest).sum(1) + (one_each * noise["gram"]).sum((1, 2))
        constant = constant + seen.sum(1) * noise["log_scale"] + natural["level_log"] + natural["level_square"] * mode * mode
        linear = 2 * natural["level_square"] * mode - 2 * noise["square"] * rest.sum(1) - toward.sum(1)
        return constant, linear, square, mode

    def log_marginal(self, natural: PyTree, data: PyTree, rows: Rows) -> Array:
        del rows
        constant, linear, square, _ = self._parts(natural, data)
        return constant - linear * linear / (4 * square) + (math.log(math.pi) - jnp.log(-square)) / 2

    def m_step(self, stats: PyTree, params: Params) -> Params:
        """Least squares on what the levels leave, and their mean square (Laird and Ware 1982, section 4)."""
        change, noise = normal_m_step(stats["noise"], params["noise_variance"], known_floor(self.floor))
        coefficients = change if self.origin is None else self.origin + change
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

    # --- coordinates -------------------------------------------------------------------------
    def coordinates(self, data: PyTree, xp: Any, present: Any = None) -> LinearUnits:
        """Centred and scaled inputs and responses."""
        given = data if isinstance(data, dict) else {"y": data}
        return linear_units(given["y"], given.get("inputs"), xp, present)

    def log_abs_det(self, data: PyTree, affine: LinearUnits) -> Any:
        y = data["y"] if isinstance(data, dict) else data
        return affine.log_abs_det(y == y).sum(1)

    def rescaled(self, affine: LinearUnits) -> RandomIntercept:
        return self if self.floor is None else dataclasses.replace(self, floor=affine.response.covariances(self.floor))

    def rescale_params(self, params: Params, affine: LinearUnits) -> Params:
        variances = {name: affine.response.covariances(params[name]) for name in ("level_variance", "noise_variance")}
        return {"coefficients": affine.line(params["coefficients"]), **variances}

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
        model = self.centered(params)
        _, linear, square, mode = model._parts(model.natural(params), data)
        return Moments(mode - linear / (2 * square), -1 / (2 * square))

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
