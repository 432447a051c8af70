"""Linear regression with responses known only in part: censored, in intervals, binned, truncated."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem import constraints as sets
from jaxem.data.validation import check_finite, check_rows, floating, numeric
from jaxem.model import Model, one_program
from jaxem.models.normal_response import normal_m_step, normal_natural, normal_recentered
from jaxem.numerics.affine import LinearUnits, linear_units
from jaxem.numerics.floors import known_floor, least_variance
from jaxem.numerics.linalg import PRECISION
from jaxem.numerics.special import log_normal_mass
from jaxem.pytree import PyTree, struct
from jaxem.types import Moments, Params, Rows

KEYS = ("lower", "upper", "inputs", "above", "below")


@struct
class CensoredRegression(Model):
    """y ~ Normal(intercept + inputs . coefficients, variance), of which a row tells that lower < y <= upper.

    Equal ends are an observed y; an infinite one is censored on that side; finite ones are intervals or bins, a bin's
    count being its weight (Dempster, Laird and Rubin 1977, section 4.2; Schmee and Hahn 1979). Where rows could be seen
    only if above < y <= below, the sample is truncated: the rows that were not seen are latent, too (section 4.2).

    Parameters: `coefficients` (P + 1,), the intercept last, and `variance`.
    Data: a dict of `lower` and `upper` (N,); and perhaps `inputs` (N, P); `above` and `below` (N,), where truncated.

    Attributes:
        floor: least variance, in the squared units of y; where it is reached a restart is DEGENERATE. None: 1e-8 times the
            variance of the y that are known, zero where none is: then the likelihood is bounded.
    """

    floor: float | Array | None = None
    origin: Any = None

    constraints: ClassVar[Any] = {"coefficients": sets.Real(), "variance": sets.Positive()}
    needs_key: ClassVar[bool] = False

    def centered(self, params: Params) -> CensoredRegression:
        """Statistics are those of residuals about the current coefficients, so that a good fit does not cancel."""
        return dataclasses.replace(self, origin=params["coefficients"])

    def recentered(self, stats: PyTree, params: Params) -> PyTree:
        return normal_recentered(stats, params["coefficients"] - self.origin)

    def natural(self, params: Params) -> dict[str, Array]:
        """As `normal_response.normal_natural`, of y - inputs . origin."""
        change = params["coefficients"] if self.origin is None else params["coefficients"] - self.origin
        return normal_natural(change, params["variance"])

    def log_marginal(self, natural: PyTree, data: PyTree, rows: Rows) -> Array:
        del rows
        z = _design(data)
        about = 0 if self.origin is None else jnp.matmul(z, jax.lax.stop_gradient(self.origin), precision=PRECISION)
        lower, upper = data["lower"] - about, data["upper"] - about
        fixed = jnp.einsum("np,pq,nq->n", z, natural["gram"], z, precision=PRECISION) + natural["log_scale"]
        linear = jnp.matmul(z, natural["cross"], precision=PRECISION)
        mean, variance = -linear / (2 * natural["square"]), -1 / (2 * natural["square"])
        scale = jnp.sqrt(variance)

        def log_integral(low: Array, high: Array) -> Array:
            """Of exp(square y^2 + linear y) over an interval."""
            mass = log_normal_mass(low, high, mean, scale)
            return mass + (math.log(2 * math.pi) + jnp.log(variance)) / 2 - linear * linear / (4 * natural["square"])

        known = data["lower"] == data["upper"]
        y = jnp.where(known, lower, 0)
        inside = log_integral(jnp.where(known, -jnp.inf, lower), jnp.where(known, jnp.inf, upper))
        total = jnp.where(known, natural["square"] * y * y + linear * y, inside) + fixed
        if "above" not in data:
            return total
        # Each row seen comes with a geometric number of rows unseen, each of probability `outside`: their sum over
        # all numbers is 1 / (1 - outside), whose logarithm's gradient are the statistics that they would have had.
        above, below = data["above"] - about, data["below"] - about
        ends = [log_integral(jnp.full_like(above, -jnp.inf), above), log_integral(below, jnp.full_like(below, jnp.inf))]
        sides = [jnp.where(jnp.isfinite(end), jnp.exp(log + fixed), 0) for end, log in zip((above, below), ends, strict=True)]
        return total - jnp.log1p(-sum(sides))

    def m_step(self, stats: PyTree, params: Params) -> Params:
        """Least squares on expected moments."""
        change, variance = normal_m_step(stats, params["variance"], known_floor(self.floor))
        return {"coefficients": change if self.origin is None else self.origin + change, "variance": variance}

    def at_floor(self, params: Params) -> dict[str, Array]:
        return {**super().at_floor(params), "variance": params["variance"] <= known_floor(self.floor)}

    def floored(self, data: PyTree, weight: Array | None) -> CensoredRegression:
        if self.floor is not None:
            return self
        known = data["lower"] == data["upper"]
        present = known if weight is None else known & (weight > 0)
        least = least_variance(jnp.where(known, data["lower"], jnp.nan), weight)
        return dataclasses.replace(self, floor=jnp.where(present.any(), least, 0))

    def validate(self, data: Any) -> dict[str, np.ndarray]:
        """Floats of the right shapes.

        Raises:
            ValueError: for missing or unknown keys, lengths that differ, intervals without inside.
        """
        if (
            not isinstance(data, dict)
            or not {"lower", "upper"} <= set(data) <= set(KEYS)
            or ("above" in data) != ("below" in data)
        ):
            got = sorted(data) if isinstance(data, dict) else type(data).__name__
            raise ValueError(
                f"data must be a dict of 'lower', 'upper', perhaps 'inputs', perhaps 'above' and 'below'; got {got}"
            )
        out = {name: floating(numeric(value, f"data[{name!r}]"), f"data[{name!r}]") for name, value in data.items()}
        n = len(out["lower"])
        for name, value in out.items():
            if value.shape[:1] != (n,) or value.ndim != (2 if name == "inputs" else 1):
                wanted = f"({n}, P)" if name == "inputs" else f"({n},)"
                raise ValueError(f"data[{name!r}] must have shape {wanted}; got {value.shape}")
        if "inputs" in out:
            check_finite(out["inputs"], "data['inputs']")
        lower, upper = out["lower"], out["upper"]
        sensible = (lower <= upper) & (np.isfinite(lower) | (lower < upper))
        check_rows(upper, sensible, "at least data['lower'], and no NaN", "data['upper']")
        if "above" in out:
            check_rows(lower, lower >= out["above"], "at least data['above']", "data['lower']")
            check_rows(upper, upper <= out["below"], "at most data['below']", "data['upper']")
            check_rows(out["below"], out["below"] > out["above"], "greater than data['above']", "data['below']")
        return out

    #: Infinite ends are no missing rows.
    missing: ClassVar[str] = "marginal"  # type: ignore[misc]

    # --- coordinates -------------------------------------------------------------------------
    def coordinates(self, data: PyTree, xp: Any, present: Any = None) -> LinearUnits:
        """Centred and scaled inputs, and responses by where a row's ends are."""
        lower, upper = (xp.where(xp.isfinite(data[name]), data[name], xp.nan) for name in ("lower", "upper"))
        lower, upper = xp.where(xp.isnan(lower), upper, lower), xp.where(xp.isnan(upper), lower, upper)
        return linear_units(lower + (upper - lower) / 2, data.get("inputs"), xp, present)

    def log_abs_det(self, data: PyTree, affine: LinearUnits) -> Any:
        """Of densities; the probability of an interval is the same in all units."""
        return affine.log_abs_det(data["lower"] == data["upper"])

    def rescaled(self, affine: LinearUnits) -> CensoredRegression:
        return self if self.floor is None else dataclasses.replace(self, floor=affine.response.covariances(self.floor))

    def rescale_params(self, params: Params, affine: LinearUnits) -> Params:
        variance = affine.response.covariances(params["variance"])
        return {"coefficients": affine.line(params["coefficients"]), "variance": variance}

    def template(self, data: PyTree) -> Params:
        dtype = data["lower"].dtype
        width = _design(jax.tree.map(lambda x: x[:1], data)).shape[1]
        return {"coefficients": jnp.zeros((width,), dtype), "variance": jnp.ones((), dtype)}

    def initialize(self, key: Array | None, data: PyTree, weight: Array) -> Params:
        """Least squares on the ends that are known, midpoints where both are."""
        del key
        low, high, z = data["lower"], data["upper"], _design(data)
        either = jnp.where(jnp.isfinite(low), low, high)
        middle = jnp.where(jnp.isfinite(low) & jnp.isfinite(high), low / 2 + high / 2, either)
        weight = weight * jnp.isfinite(middle)
        y = jnp.where(jnp.isfinite(middle), middle, 0)
        stats = {
            "square": weight @ (y * y),
            "cross": (weight * y) @ z,
            "gram": jnp.einsum("n,np,nq->pq", weight, z, z, precision=PRECISION),
            "log_scale": weight.sum(),
        }
        spread = weight @ jnp.square(y - weight @ y / weight.sum()) / weight.sum()
        coefficients, variance = normal_m_step(stats, jnp.ones((), y.dtype), known_floor(self.floor))
        return {"coefficients": coefficients, "variance": jnp.maximum(variance, jnp.where(spread > 0, spread / 100, 1))}

    @one_program
    def posterior(self, params: Params, data: PyTree) -> Moments:
        """Of the y of each row, given what is known of it."""
        mean, variance = self.predict(params, data), params["variance"]
        ends = jnp.asarray(data["lower"], mean.dtype), jnp.asarray(data["upper"], mean.dtype)
        known = ends[0] == ends[1]
        lower, upper = jnp.where(known, -jnp.inf, ends[0]), jnp.where(known, jnp.inf, ends[1])
        # Derivatives of the log-mass in the mean are cumulants of y, up to powers of the variance.
        slope = jax.grad(lambda mean: log_normal_mass(lower, upper, mean, jnp.sqrt(variance)).sum())
        first, second = jax.jvp(slope, (mean,), (jnp.ones_like(mean),))
        spread = jnp.maximum(variance + variance * variance * second, 0)
        return Moments(jnp.where(known, ends[0], mean + variance * first), jnp.where(known, 0, spread))

    def sample_like(self, key: Array, params: Params, data: PyTree) -> PyTree:
        """A y, known exactly, for each row of `data`, with its inputs and cut off where it is."""
        mean, scale = self.predict(params, data), jnp.sqrt(params["variance"])
        ends = (data["above"], data["below"]) if "above" in data else (-jnp.inf, jnp.inf)
        low, high = ((jnp.asarray(end, mean.dtype) - mean) / scale for end in ends)
        y = mean + scale * jax.random.truncated_normal(key, low, high, mean.shape, mean.dtype)
        return {**data, "lower": y, "upper": y}

    @one_program
    def predict(self, params: Params, data: PyTree) -> Array:
        """(N,) intercept + inputs . coefficients."""
        return jnp.matmul(_design(data), params["coefficients"], precision=PRECISION)

    def n_free_params(self, data: PyTree) -> int:
        return _design(jax.tree.map(lambda x: x[:1], data)).shape[1] + 1


def _design(data: PyTree) -> Array:
    """(n, P + 1) inputs and one."""
    one = jnp.ones_like(jnp.asarray(data["lower"]))[:, None]
    return jnp.concatenate([jnp.asarray(data["inputs"]), one], 1) if "inputs" in data else one
