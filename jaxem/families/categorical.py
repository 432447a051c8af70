"""Categories, one column or several that are independent given the component (latent classes)."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem import constraints as sets
from jaxem.data.validation import check_positive_int, check_rows, is_traced, vector_or_matrix
from jaxem.families.base import Family
from jaxem.numerics.blocks import by_row
from jaxem.numerics.linalg import PRECISION
from jaxem.priors import Dirichlet
from jaxem.pytree import PyTree, static, struct
from jaxem.types import Params

#: log 0 as a finite number whose exponential is exactly zero: it can pass through a matrix product. Totals of counts times
#: logarithms stay far above it, and it times a total stays finite in float32.
LOG_ZERO = -1e25


#: Up to this many categories a product with one-hot codes is no slower than looking each code up: on a CPU, elsewhere.
FEW, FEW_ELSEWHERE = 8, 128
#: Columns of one-hot codes beyond which starts measure distance in `WIDTH` random directions, and draws invert the CDF.
WIDE, WIDTH = 256, 64


def finite_log(probs: Array) -> Array:
    """Logarithm, `LOG_ZERO` of zero."""
    return jnp.where(probs > 0, jnp.log(jnp.where(probs > 0, probs, 1)), LOG_ZERO)


def with_impossible(scores: Array) -> Array:
    """Sums of finite logarithms, minus infinity where one of zero entered."""
    return jnp.where(scores > LOG_ZERO / 2, scores, -jnp.inf)


@struct
class Categorical(Family):
    """Categorical density; parameter `probs` (K, V) for data (N,), (K, D, V) for data (N, D) of codes 0..V-1.

    Attributes:
        n_categories: V.
        prior: Dirichlet prior on the probabilities, or None.
        missing: "marginal" where codes may be -1 or NaN: not seen, and summed out.
    """

    n_categories: int = static()
    prior: Dirichlet | None = None
    missing: str | None = static((None, "marginal"), default=None)

    absent: ClassVar[float] = -1

    @property
    def constraints(self) -> dict[str, Any]:
        return {"probs": sets.Simplex()}

    def natural(self, params: Params) -> dict[str, Array]:
        """Leaf `log_probs`: t is the one-hot code."""
        return {"log_probs": finite_log(params["probs"])}

    def _looked_up(self) -> bool:
        return self.n_categories > (FEW if jax.default_backend() == "cpu" else FEW_ELSEWHERE)

    def pack(self, natural: PyTree) -> PyTree:
        """Of many categories a table (D V + 2, K) to look codes up in; what is unknown and what is missing stand last."""
        if not self._looked_up() or "table" in natural:
            return natural
        weights = natural["log_probs"]
        table = weights.reshape(weights.shape[0], -1).T
        ends = jnp.array([[LOG_ZERO], [0]], table.dtype)
        return {"table": jnp.concatenate([table, jnp.broadcast_to(ends, (2, table.shape[1]))])}

    def scores(self, natural: PyTree, data: Array) -> Array:
        codes, v = _codes(data).T, self.n_categories
        unknown = (codes < (-1 if self.missing == "marginal" else 0)) | (codes >= v)
        if self._looked_up():
            table = self.pack(natural)["table"]
            last = table.shape[0] - 1
            place = jnp.where(codes < 0, last, v * np.arange(len(codes), dtype=np.int32)[:, None] + codes)
            return with_impossible(table[jnp.where(unknown, last - 1, place)].sum(0).T)
        weights = natural["log_probs"]
        one_hot = (codes[:, None, :] == jnp.arange(v)[:, None]).astype(weights.dtype)
        flat = one_hot.reshape(len(codes) * v, data.shape[0])
        scores = with_impossible(jnp.matmul(weights.reshape(weights.shape[0], -1), flat, precision=PRECISION))
        return jnp.where(unknown.any(0), -jnp.inf, scores)

    def m_step(self, stats: PyTree, params: Params) -> Params:
        """Relative frequencies; a component without data keeps its probabilities."""
        counts = jnp.maximum(stats["log_probs"], 0)
        total = counts.sum(-1, keepdims=True)
        return {"probs": jnp.where(total > 0, counts / jnp.where(total > 0, total, 1), params["probs"])}

    def pseudo_stats(self, template: Params) -> PyTree | None:
        return None if self.prior is None else {"log_probs": self.prior.pseudo_counts(template["probs"])}

    def template(self, data: Array, n_components: int) -> Params:
        shape = (n_components, *data.shape[1:], self.n_categories)
        return {"probs": jnp.full(shape, 1 / self.n_categories, jnp.zeros(()).dtype)}

    def validate(self, data: Any) -> Any:
        check_positive_int(self.n_categories, "n_categories")
        array = vector_or_matrix(data)
        wanted, least = f"codes 0..{self.n_categories - 1}", 0
        if self.missing == "marginal":
            wanted, least = f"{wanted}, or -1 where missing", -1
            array = np.where(np.isnan(array), -1, array)
        elif np.isnan(array).any():
            wanted = f"{wanted} (NaN stands for a missing one with missing='marginal')"
        valid = np.isfinite(array) & (array >= least) & (array < self.n_categories) & (array == np.floor(array))
        check_rows(array, valid, wanted)
        return array.astype(np.int32)

    def features(self, data: Array) -> Array:
        codes, v = _codes(data), self.n_categories
        if codes.shape[1] * v <= WIDE:
            return jax.nn.one_hot(data, v).reshape(data.shape[0], -1)
        # Random directions keep the distances of one-hot codes, which would take D V numbers a row.
        table = jax.random.normal(jax.random.key(0), (codes.shape[1], v, WIDTH)) / WIDTH**0.5
        known = (codes >= 0)[..., None]
        return jnp.where(known, table[jnp.arange(codes.shape[1]), codes], 0).sum(1)

    def n_free_params(self, n_components: int, data: Array) -> int:
        """Of each column, one less than the categories that occur; with a prior, or inside jit, than there could be."""
        columns = int(np.prod(data.shape[1:], dtype=int))
        if self.prior is not None or is_traced(data):
            return n_components * columns * (self.n_categories - 1)
        levels = [np.unique(column[column >= 0]).size for column in np.asarray(data).reshape(-1, columns).T]
        return n_components * sum(max(level - 1, 0) for level in levels)

    def sample(self, key: Array, params: Params, component: Array) -> Array:
        probs = params["probs"]
        if self.n_categories > WIDE:
            return _inverse(key, jnp.cumsum(probs, -1), component)
        probs = probs[component]
        return jax.random.categorical(key, jnp.where(probs > 0, jnp.log(probs), -jnp.inf)).astype(jnp.int32)


def _codes(data: Array) -> Array:
    """(n, D) integers, -1 for NaN."""
    codes = by_row(data)
    if jnp.issubdtype(codes.dtype, jnp.floating):
        codes = jnp.where(jnp.isnan(codes), -1, codes)
    return codes.astype(jnp.int32)


def _inverse(key: Array, cumulative: Array, component: Array) -> Array:
    """(n,) or (n, D) codes by bisection in the rows of cumulative probabilities (K, V) or (K, D, V)."""
    v = cumulative.shape[-1]
    flat = cumulative.reshape(-1, v)
    n_columns = flat.shape[0] // cumulative.shape[0]
    rows = component[:, None] * n_columns + jnp.arange(n_columns)
    u = jax.random.uniform(key, rows.shape, flat.dtype) * flat[rows, -1]

    def halve(i: Array, low: Array) -> Array:
        probe = low + (1 << (bits - 1 - i))
        return jnp.where((probe < v) & (flat[rows, jnp.minimum(probe, v) - 1] <= u), probe, low)

    bits = (v - 1).bit_length()
    return jax.lax.fori_loop(0, bits, halve, jnp.zeros(rows.shape, jnp.int32)).reshape(-1, *cumulative.shape[1:-1])
