"""Poisson superposition, y ~ Poisson(A x + b): emission tomography, deconvolution, read quantification."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem import constraints as sets
from jaxem.data.validation import check_rows, floating, numeric
from jaxem.latents.superposition import log_partition
from jaxem.model import Model
from jaxem.numerics.blocks import float_dtype
from jaxem.numerics.linalg import PRECISION
from jaxem.numerics.logs import safe_log
from jaxem.priors import Smoothness
from jaxem.pytree import PyTree, static, struct
from jaxem.types import Params, Rows


@struct
class Superposition(Model):
    """y ~ Poisson(A x + b) with unknown rates x >= 0; EM is MLEM (Shepp and Vardi 1982), or Richardson-Lucy.

    Parameter: `rate` x, of P entries. Its zeros stay zero. A takes one of three forms:

    - a matrix, whose rows belong to the data: `{"y": (N,), "row": (N, P)}`;
    - a linear function `operator(operands, x, row)` -> (N, ...), for data that each know their part of A, such as the
      views of a tomograph: `{"y": (N, ...), "row": tree whose leaves lead with N}`. Rows are cut into blocks, weighted
      and summed like any data, and `jaxem.OrderedSubsets` takes them in turn;
    - a linear function `operator(operands, x)`. Then y is one indivisible datum, or N repetitions of one: its
      leading axis is N (1), whatever follows is the shape of what the operator returns.

    Sensitivity A^T 1 and back-projection come from one `jax.vjp` of the function. Data may hold beside, each in the
    shape of y: `"background"`, b; `"attenuation"`, a factor of each bin in A (attenuation, efficiency, time of
    exposure); `"mask"`, False for bins that count for nothing, whatever they hold. On the host NaN in y is such a bin.

    With a prior the M-step is De Pierro's (1995): the maximum of a separable surrogate of q and the log-prior, which
    touches their sum at the current rates and lies below it elsewhere. So it raises both, but is not their maximum.

    Attributes:
        operator: the function, or None for a matrix. Hashed by identity: define it once.
        shape: shape of x, for a function.
        operands: arrays that the function needs; passed to it rather than closed over.
        sensitivity: A^T 1 of a single datum, in the shape of x; see `with_sensitivity`. None: then it costs a
            projection and its adjoint each step.
        prior: `jaxem.Smoothness`, or None.
    """

    operator: Callable[..., Array] | None = static(default=None)
    shape: tuple[int, ...] | None = static(default=None)
    operands: PyTree = ()
    sensitivity: Array | None = None
    prior: Smoothness | None = None

    constraints: ClassVar[Any] = {"rate": sets.NonNegative()}
    needs_key: ClassVar[bool] = False
    mask: ClassVar[str] = "mask"
    m_step_has_prior: ClassVar[bool] = True

    @property
    def m_step_is_maximum(self) -> bool:  # type: ignore[override]
        return self.prior is None

    @property
    def log_prior(self) -> Callable[[Params], Array] | None:
        """Logarithm of the prior density of the rates, but for a constant."""
        prior = self.prior
        return None if prior is None else lambda params: prior.log_density(params["rate"])

    def natural(self, params: Params) -> dict[str, Array]:
        """Leaves `log_rate`, t = counts by source, and `exposure` = -x, t = sensitivity."""
        return {"log_rate": safe_log(params["rate"]), "exposure": -params["rate"]}

    def _project(self, data: PyTree, x: Array) -> Array:
        """(n, ...) A x, or (1, ...) where all data share it; zero in masked bins."""
        if self.operator is None:
            seen = jnp.matmul(data["row"], x, precision=PRECISION)
        elif "row" in data:
            seen = self.operator(self.operands, x, data["row"])
        else:
            seen = self.operator(self.operands, x)[None]
        for name in ("attenuation", "mask"):
            seen = seen * _unmasked(data, name).astype(x.dtype) if name in data else seen
        return seen

    def log_marginal(self, natural: PyTree, data: PyTree, rows: Rows) -> Array:
        del rows
        y = _unmasked(data, "y").astype(natural["exposure"].dtype)
        background = _unmasked(data, "background") if "background" in data else jnp.zeros_like(y)
        mean = self._project(data, jnp.exp(natural["log_rate"])) + background
        if self.sensitivity is not None:
            total = -jnp.vdot(self.sensitivity, natural["exposure"], precision=PRECISION)[None]
        else:
            total = -_per_row(self._project(data, natural["exposure"]))
        return log_partition(y, mean, total + _per_row(background))

    def m_step(self, stats: PyTree, params: Params) -> Params:
        """Update x <- counts / sensitivity; a source that nothing sees keeps its rate. With a prior De Pierro's."""
        rate, counts, exposure = params["rate"], jnp.maximum(stats["log_rate"], 0), stats["exposure"]
        if self.prior is None:
            return {"rate": jnp.where(exposure > 0, counts / jnp.where(exposure > 0, exposure, 1), rate)}
        # Of counts log x - exposure x + slope x - curvature (x - rate)^2 / 2 the maximum is the positive root.
        curvature, slope = self.prior.curvature(rate), jax.grad(self.prior.log_density)(rate)
        linear = exposure - slope - curvature * rate
        root = jnp.sqrt(jnp.square(linear) + 4 * curvature * counts)
        # Two forms of it, each without cancellation in its half.
        rises = linear > 0
        fraction = 2 * counts / jnp.where(rises, linear + root, 1)
        found = jnp.where(rises, fraction, (root - linear) / jnp.where(curvature > 0, 2 * curvature, 1))
        free = (rate > 0) & (rises | (curvature > 0))
        return {"rate": jnp.where(free, found, rate)}

    def with_sensitivity(self, data: Any) -> Superposition:
        """This model, its sensitivity computed once for all steps of a fit to one indivisible datum.

        Raises:
            ValueError: for data of more than one row: their sensitivity depends on which are present.
        """
        data = self.validate(data)
        if len(data["y"]) != 1 or "row" in data:
            raise ValueError(f"with_sensitivity needs one indivisible datum; got {len(data['y'])} rows")
        return dataclasses.replace(self, sensitivity=self._sensitivity(data, jnp.ones((1,), float_dtype(data))))

    def _sensitivity(self, data: PyTree, weight: Array) -> Array:
        """A^T weight, in the shape of x."""
        one = self.template(data)["rate"]
        total = lambda x: jnp.sum(weight * _per_row(self._project(data, x)))  # noqa: E731
        return jax.grad(total)(one)

    def validate(self, data: Any) -> dict[str, Any]:
        """Arrays of the right shapes, NaN in y masked.

        Raises:
            ValueError: for missing or unknown keys, shapes that do not fit, negative counts, backgrounds,
                attenuations or matrix entries, a mask that leaves nothing.
        """
        needed = {"y", "row"} if self.operator is None else {"y"}
        allowed = {"y", "row", "background", "attenuation", "mask"}
        if not isinstance(data, dict) or not needed <= set(data) <= allowed:
            got = sorted(data) if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"data must be a dict of {sorted(needed)} and perhaps {sorted(allowed - needed)}; got {got}")
        out: dict[str, Any] = {name: numeric(value, f"data[{name!r}]") for name, value in data.items() if name != "row"}
        y = out["y"]
        if not y.size or not y.ndim:
            raise ValueError(f"data['y'] must hold counts and lead with N; got shape {y.shape}")
        for name, value in out.items():
            if value.shape != y.shape:
                raise ValueError(f"data[{name!r}] must have the shape of y, {y.shape}; got {value.shape}")
        seen = out.pop("mask", np.ones(y.shape, bool)).astype(bool) & ~np.isnan(y)
        if not seen.any():
            raise ValueError("data['mask'] must leave at least one bin; got none")
        for name, value in out.items():
            value = np.where(seen, value, np.zeros((), value.dtype))
            check_rows(value, value >= 0, "non-negative", f"data[{name!r}]")
            out[name] = floating(value, f"data[{name!r}]")
        if "mask" in data or not seen.all():
            out["mask"] = seen
        return out | self._checked_rows(data, out["y"])

    def _checked_rows(self, data: Any, y: np.ndarray) -> dict[str, Any]:
        """`{"row": ...}` or nothing; raises where y is not what A gives."""
        is_list = lambda x: isinstance(x, list)  # noqa: E731
        rows = jax.tree.map(lambda x: floating(numeric(x, "data['row']"), "data['row']"), data.get("row", ()), is_leaf=is_list)
        if self.operator is None:
            if y.ndim != 1 or rows.ndim != 2 or len(y) != len(rows):
                raise ValueError(f"data must be y (N,) and row (N, P); got shapes {y.shape} and {rows.shape}")
            check_rows(rows, rows >= 0, "non-negative", "data['row']")
            return {"row": rows}
        if self.shape is None:
            raise ValueError("shape must be the shape of x where operator is a function; got None")
        x = jax.ShapeDtypeStruct(self.shape, y.dtype)
        if "row" not in data:
            made = jax.eval_shape(self.operator, self.operands, x).shape
            if y.shape[1:] != made:
                raise ValueError(f"data['y'] must have shape {(1, *made)}: 1, then what operator returns; got {y.shape}")
            return {}
        if self.sensitivity is not None:
            raise ValueError("sensitivity must be None where data have rows: it depends on which are present")
        if any(leaf.shape[:1] != y.shape[:1] for leaf in jax.tree.leaves(rows)):
            raise ValueError(f"data['row'] must have leaves that lead with N={len(y)}; got {jax.tree.map(np.shape, rows)}")
        made = jax.eval_shape(self.operator, self.operands, x, rows).shape
        if y.shape != made:
            raise ValueError(f"data['y'] must have the shape of what operator returns for these rows, {made}; got {y.shape}")
        return {"row": rows}

    def template(self, data: PyTree) -> Params:
        shape = data["row"].shape[1:] if self.operator is None else self.shape
        return {"rate": jnp.ones(shape, float_dtype(data))}

    def initialize(self, key: Array | None, data: PyTree, weight: Array) -> Params:
        """Equal rates that explain the total count; zero where nothing is seen."""
        del key
        sensitivity = self._sensitivity(data, weight)
        background = _unmasked(data, "background") if "background" in data else 0
        counts = weight @ _per_row(_unmasked(data, "y") - background)
        total = sensitivity.sum()
        rate = jnp.where(counts > 0, counts, 1) / jnp.where(total > 0, total, 1)
        return {"rate": jnp.where(sensitivity > 0, rate, 0).astype(sensitivity.dtype)}

    def n_free_params(self, data: PyTree) -> int:
        return int(np.prod(self.template(data)["rate"].shape))

    def mean(self, params: Params, data: PyTree) -> Array:
        """Expected counts A x + b in the shape of y, in masked bins those of an unmasked one."""
        unmasked = {name: value for name, value in data.items() if name != "mask"}
        mean = self._project(unmasked, params["rate"])
        return jnp.broadcast_to(mean + data.get("background", 0), jnp.shape(data["y"]))

    def sample(self, key: Array, params: Params, n: int) -> dict[str, Array]:
        """n repetitions of y alone, from an operator that needs no row."""
        if self.operator is None or len(inspect.signature(self.operator).parameters) > 2:
            raise NotImplementedError("there are no rows but those of data: use sample_like")
        mean = self.operator(self.operands, params["rate"])
        return {"y": jax.random.poisson(key, mean, (n, *mean.shape)).astype(mean.dtype)}

    def sample_like(self, key: Array, params: Params, data: PyTree) -> dict[str, Array]:
        """`data` with other counts, masked bins unmasked."""
        mean = self.mean(params, data)
        return {name: x for name, x in data.items() if name != "mask"} | {"y": jax.random.poisson(key, mean).astype(mean.dtype)}


def _unmasked(data: PyTree, name: str) -> Array:
    """A leaf of `data`, zero where the mask says so."""
    return jnp.where(data["mask"], data[name], 0) if "mask" in data else data[name]


def _per_row(x: Array) -> Array:
    return x.reshape(x.shape[0], -1).sum(1)
