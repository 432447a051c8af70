"""Shares of a population whose members are seen only up to what could have produced each datum."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem import constraints as sets
from jaxem.data.validation import floating, numeric
from jaxem.model import Model, one_program
from jaxem.numerics.blocks import float_dtype
from jaxem.numerics.linalg import PRECISION
from jaxem.numerics.logs import divided, most_probable, safe_log, softmax, sum_out
from jaxem.priors import Dirichlet
from jaxem.pytree import PyTree, static, struct
from jaxem.types import Params, Rows


@struct
class Peaks:
    """Log-densities relative to the greatest of their datum: what all share says nothing of shares, and costs digits."""

    shift: ClassVar[float] = 0.0
    inverse: ClassVar[float] = 1.0

    def of(self, data: PyTree) -> Any:
        """(N, 1) what is subtracted."""
        table = data
        xp = np if isinstance(jax.tree.leaves(data)[0], np.ndarray) else jnp
        if isinstance(data, dict):
            table = xp.where(data["parts"][..., 0] >= 0, data["log_weight"], -xp.inf)
        most = table.max(1, keepdims=True)
        return xp.where(xp.isfinite(most), most, 0).astype(table.dtype)

    def data(self, data: PyTree) -> PyTree:
        """The same relative to what is subtracted."""
        return {**data, "log_weight": data["log_weight"] - self.of(data)} if isinstance(data, dict) else data - self.of(data)

    def inverted(self) -> Peaks:
        """The way back: parameters do not change."""
        return self


@struct
class Proportions(Model):
    """p(x_n) = sum over configurations l of exp(log_weight[n, l]) * product over p of shares[parts[n, l, p]].

    A datum tells only which configurations could have made it, and how well each explains it. With one part to a
    configuration this is a mixture of known components: reads that fit several transcripts, survival times known up
    to an interval, classes of known densities. With two it is gene counting (Ceppellini, Siniscalco and Smith 1955;
    Dempster, Laird and Rubin 1977): phenotypes that several pairs of alleles or haplotypes could have made.

    Parameter: `shares` (K,), which sum to one.
    Data: an array (N, K) of log-densities under each of K components; or, as `jaxem.data.configurations` makes them, a dict
    of `parts` (N, L, P) integers in 0..K-1, -1 where a datum has fewer than L configurations, and `log_weight` (N, L).
    The part K + g stands for any of the parts in group g: what is not known of a configuration needs no enumeration.

    Attributes:
        n_parts: K; a number, needed where data name parts. None: the columns of a table.
        groups: (G, K) bools, the members of each group, or None.
        prior: Dirichlet prior on the shares, or None.
    """

    n_parts: int | None = static(default=None)
    groups: Any = None
    prior: Dirichlet | None = None

    constraints: ClassVar[Any] = {"shares": sets.Simplex()}
    offset_counts: ClassVar[bool] = False
    needs_key: ClassVar[bool] = False

    def natural(self, params: Params) -> dict[str, Array]:
        """Leaf `log_shares` (K,): t is how often each part was used."""
        return {"log_shares": safe_log(params["shares"])}

    def pack(self, natural: PyTree) -> Array:
        """(K + G,) log-shares of the parts and of the groups."""
        log_shares = natural["log_shares"]
        if self.groups is None:
            return log_shares
        members = jnp.asarray(self.groups, log_shares.dtype)
        return jnp.concatenate([log_shares, safe_log(jnp.matmul(members, jnp.exp(log_shares), precision=PRECISION))])

    def _scores(self, log_shares: Array, data: PyTree) -> Array:
        """(n, L) log-weight of each configuration, -inf for those that are none."""
        if not isinstance(data, dict):
            return data + log_shares
        parts = data["parts"]
        used = jnp.where(parts >= 0, log_shares[parts], 0).sum(-1)
        return jnp.where(parts[..., 0] >= 0, used + data["log_weight"], -jnp.inf)

    def log_marginal(self, natural: Array, data: PyTree, rows: Rows) -> Array:
        return sum_out(self._scores(natural, data), 1, rows.hard)

    def m_step(self, stats: PyTree, params: Params) -> Params:
        """Relative expected counts."""
        counts = jnp.maximum(stats["log_shares"], 0)
        return {"shares": jnp.where(counts.sum() > 0, divided(counts, counts.sum()), params["shares"])}

    def pseudo_stats(self, params: Params) -> PyTree | None:
        return None if self.prior is None else {"log_shares": self.prior.pseudo_counts(params["shares"])}

    #: A log-weight of -inf is no missing entry: `validate` looks for those.
    missing: ClassVar[str] = "marginal"  # type: ignore[misc]

    def validate(self, data: Any) -> PyTree:
        """Arrays of the right shapes.

        Raises:
            ValueError: for shapes that do not fit, parts that do not exist, or a datum that nothing could have made.
        """
        if not isinstance(data, dict):
            table = numeric(data, "data")
            if table.ndim != 2 or not table.shape[1]:
                raise ValueError(f"data must be a table (N, K) or a dict of 'parts' and 'log_weight'; got shape {table.shape}")
            table, name = floating(table, "data"), "data"
            if self.n_parts not in (None, table.shape[1]):
                raise ValueError(f"data must have n_parts={self.n_parts} columns; got {table.shape[1]}")
        else:
            if set(data) != {"parts", "log_weight"}:
                raise ValueError(f"data must be a dict of 'parts' and 'log_weight'; got {sorted(data)}")
            if self.n_parts is None:
                raise ValueError("n_parts must be the number of parts where data name them; got None")
            if self.groups is not None and np.shape(self.groups)[1:] != (self.n_parts,):
                raise ValueError(f"groups must have shape (G, {self.n_parts}); got {np.shape(self.groups)}")
            parts, name = numeric(data["parts"], "data['parts']"), "data['log_weight']"
            table = floating(numeric(data["log_weight"], name), name)
            if parts.ndim != 3 or table.shape != parts.shape[:2] or parts.dtype.kind not in "iu" or 0 in parts.shape[1:]:
                got = f"{parts.dtype} {parts.shape} and {table.shape}"
                raise ValueError(f"data must be integers 'parts' (N, L, P) and 'log_weight' (N, L); got {got}")
            absent = (parts == -1).all(-1)
            n_names = self.n_parts + (0 if self.groups is None else len(self.groups))
            wrong = ((parts < 0) | (parts >= n_names)).any(-1) & ~absent
            if wrong.any():
                row, column = np.argwhere(wrong)[0]
                wanted = f"data['parts'] must be in 0..{n_names - 1}, or -1 throughout a configuration"
                raise ValueError(f"{wanted}; got {parts[row, column]} in row {row}, configuration {column}")
            table = np.where(absent, -np.inf, table).astype(table.dtype)
        if np.isnan(table).any() or (table == np.inf).any():
            raise ValueError(f"{name} must hold finite numbers or -inf; got NaN or inf")
        lost = np.flatnonzero((table == -np.inf).all(1))
        if lost.size:
            raise ValueError(f"{name}: every datum must have a configuration that could have made it; row {lost[0]} has none")
        if not isinstance(data, dict):
            return table
        return {"parts": parts.astype(np.int32), "log_weight": np.where(absent, 0, table)}

    def _n_parts(self, data: PyTree) -> int:
        return self.n_parts if self.n_parts is not None else data.shape[1]

    def coordinates(self, data: PyTree, xp: Any, present: Any = None) -> Peaks:
        """Log-densities relative to the greatest of each datum."""
        del data, xp, present
        return Peaks()

    def log_abs_det(self, data: PyTree, affine: Peaks) -> Any:
        """(N,) what was subtracted."""
        return affine.of(data)[:, 0]

    def template(self, data: PyTree) -> Params:
        k = self._n_parts(data)
        return {"shares": jnp.full((k,), 1 / k, float_dtype(data))}

    def initialize(self, key: Array | None, data: PyTree, weight: Array) -> Params:
        """Without a key equal shares, from which one part to a configuration leads to the maximum; else random ones."""
        del weight
        template = self.template(data)
        if key is None:
            return template
        drawn = jax.random.exponential(key, template["shares"].shape, template["shares"].dtype)
        return {"shares": drawn / drawn.sum()}

    # --- after the fit -----------------------------------------------------------------------
    @one_program
    def posterior(self, params: Params, data: PyTree) -> Array:
        """(N, L) probability of each configuration; of each component where data are a table."""
        return softmax(self._scores(self.pack(self.natural(params)), data), 1)

    def predict(self, params: Params, data: PyTree) -> Array:
        """(N,) most probable configuration."""
        return most_probable(self.posterior(params, data))

    def n_free_params(self, data: PyTree) -> int:
        return self._n_parts(data) - 1
