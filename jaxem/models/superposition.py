"""Poisson superposition, y ~ Poisson(A x + b): emission tomography, deconvolution, read quantification."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem import constraints as sets
from jaxem.blocks import float_dtype
from jaxem.latents.superposition import log_partition
from jaxem.numerics import PRECISION, safe_log
from jaxem.types import Model, Params, Rows, static, struct
from jaxem.validation import check_rows, floating, numeric

PyTree = Any


@struct
class Superposition(Model):
    """y ~ Poisson(A x + b) with unknown rates x >= 0; EM is MLEM (Shepp and Vardi 1982), or Richardson-Lucy.

    Parameter: `rate` x, of P entries. Its zeros stay zero. A takes one of two forms:

    - a matrix, whose rows belong to the data: `{"y": (N,), "row": (N, P)}` and, where b is not zero,
      `"background": (N,)`. Rows are cut into blocks and summed like any data.
    - a linear function `operator(operands, x)`, for y of any shape. Then y is one indivisible datum:
      its leading axis is 1, whatever follows is the shape of y: `{"y": (1, ...)}` and `"background": (1, ...)`.
      Its adjoint comes from `jax.vjp` alone.

    Attributes:
        operator: the function, or None for a matrix. Hashed by identity: define it once.
        shape: shape of x, for a function.
        operands: arrays that the function needs; passed to it rather than closed over.
        sensitivity: A^T 1 in the shape of x, or None: then it costs a projection and its adjoint each step.
    """

    operator: Callable[[PyTree, Array], Array] | None = static(default=None)
    shape: tuple[int, ...] | None = static(default=None)
    operands: PyTree = ()
    sensitivity: Array | None = None

    constraints: ClassVar[Any] = {"rate": sets.NonNegative()}
    needs_key: ClassVar[bool] = False

    def natural(self, params: Params) -> dict[str, Array]:
        """Leaves `log_rate`, t = counts by source, and `exposure` = -x, t = sensitivity."""
        return {"log_rate": safe_log(params["rate"]), "exposure": -params["rate"]}

    def _project(self, data: PyTree, x: Array) -> Array:
        """(n, ...) A x."""
        if self.operator is None:
            return jnp.matmul(data["row"], x, precision=PRECISION)
        return self.operator(self.operands, x)[None]

    def log_marginal(self, natural: PyTree, data: PyTree, rows: Rows) -> Array:
        del rows
        y = data["y"].astype(natural["exposure"].dtype)
        background = data.get("background", jnp.zeros_like(y))
        mean = self._project(data, jnp.exp(natural["log_rate"])) + background
        if self.operator is not None and self.sensitivity is not None:
            total = -jnp.vdot(self.sensitivity, natural["exposure"], precision=PRECISION)[None]
        else:
            total = -_per_row(self._project(data, natural["exposure"]))
        return log_partition(y, mean, total + _per_row(background))

    def m_step(self, stats: PyTree, params: Params) -> Params:
        """Update x <- counts / sensitivity; a source that nothing sees keeps its rate."""
        seen = stats["exposure"] > 0
        rate = jnp.maximum(stats["log_rate"], 0) / jnp.where(seen, stats["exposure"], 1)
        return {"rate": jnp.where(seen, rate, params["rate"])}

    def validate(self, data: Any) -> dict[str, np.ndarray]:
        """Arrays of the right shapes.

        Raises:
            ValueError: for missing or unknown keys, shapes that do not fit, negative counts or matrix entries.
        """
        wanted = {"y", "row"} if self.operator is None else {"y"}
        if not isinstance(data, dict) or not wanted <= set(data) <= wanted | {"background"}:
            got = sorted(data) if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"data must be a dict of {sorted(wanted)} and perhaps 'background'; got {got}")
        out = {name: floating(numeric(value, f"data[{name!r}]"), f"data[{name!r}]") for name, value in data.items()}
        y = out["y"]
        for name, value in out.items():
            check_rows(value, np.isnan(value) | (value >= 0), "non-negative", f"data[{name!r}]")
        if "background" in out and out["background"].shape != y.shape:
            raise ValueError(f"data['background'] must have the shape of y, {y.shape}; got {out['background'].shape}")
        if self.operator is None:
            if y.ndim != 1 or out["row"].ndim != 2 or len(y) != len(out["row"]) or not len(y):
                raise ValueError(f"data must be y (N,) and row (N, P); got shapes {y.shape} and {out['row'].shape}")
            return out
        if self.shape is None:
            raise ValueError("shape must be the shape of x where operator is a function; got None")
        made = jax.eval_shape(self.operator, self.operands, jax.ShapeDtypeStruct(self.shape, float_dtype(out))).shape
        if y.shape != (1, *made):
            raise ValueError(f"data['y'] must have shape {(1, *made)}: 1, then what operator returns; got {y.shape}")
        return out

    def blank(self, data: PyTree) -> Params:
        shape = data["row"].shape[1:] if self.operator is None else self.shape
        return {"rate": jnp.ones(shape, float_dtype(data))}

    def initialize(self, key: Array | None, data: PyTree, weight: Array) -> Params:
        """Equal rates that explain the total count; zero where nothing is seen."""
        del key
        one = self.blank(data)["rate"]
        _, adjoint = jax.vjp(lambda x: weight @ _per_row(self._project(data, x)), one)
        (sensitivity,) = adjoint(jnp.ones((), weight.dtype))
        counts = weight @ _per_row(data["y"] - data.get("background", jnp.zeros_like(data["y"])))
        total = sensitivity.sum()
        rate = jnp.where(counts > 0, counts, 1) / jnp.where(total > 0, total, 1)
        return {"rate": jnp.where(sensitivity > 0, rate, 0).astype(one.dtype)}

    def n_free_params(self, data: PyTree) -> int:
        return int(np.prod(self.blank(data)["rate"].shape))

    def mean(self, params: Params, data: PyTree) -> Array:
        """Expected counts A x + b in the shape of y."""
        mean = self._project(data, params["rate"])
        return mean + data["background"] if "background" in data else mean


def _per_row(x: Array) -> Array:
    return x.reshape(x.shape[0], -1).sum(1)
