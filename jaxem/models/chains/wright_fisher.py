"""Selection and drift of an allele's frequency behind samples taken over generations."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import gammaln

from jaxem import constraints as sets
from jaxem.data.validation import check_positive_int, check_rows, floating, numeric
from jaxem.latents import chain
from jaxem.model import Model
from jaxem.models.chains.inference import Chain, ChainInference
from jaxem.numerics.special import log_normal_mass
from jaxem.pytree import PyTree, static, struct
from jaxem.types import Params, Rows


@struct
class WrightFisher(ChainInference, Model):
    """A hidden Markov model whose states are the frequencies of an allele, one step a generation.

    A generation takes frequency x to x' = x (1 + s) / (1 + s x) by selection, then to a binomial share of 2N copies
    by drift, here a normal share with that mean and variance x' (1 - x') / 2N on a grid (Williamson and Slatkin 1999;
    Bollback, York and Nielsen 2008). Frequencies 0 and 1 are absorbing; the first is uniform on the grid.

    Parameter: `selection`, s > -1 of the allele per generation; it may be any real s that keeps 1 + s positive.
    Data: a dict of `count` and `total` (B, T), or (T,) for one: copies of the allele among those sampled in each
    generation of each locus or replicate; a `total` of zero is no sample.

    Attributes:
        population: 2N, gene copies; known.
        n_grid: K, frequencies from 0 to 1. Wide cells blur drift: let 1 / K be below sqrt(1 / 8N).
    """

    population: float | Array
    n_grid: int = static(default=101)

    constraints: ClassVar[Any] = {"selection": sets.Real()}
    needs_key: ClassVar[bool] = False

    def frequencies(self, dtype: Any = float) -> Array:
        """(K,) the grid."""
        return jnp.linspace(0, 1, self.n_grid, dtype=dtype)

    def natural(self, params: Params) -> dict[str, Array]:
        """Leaves `log_initial` (K,) and `log_transition` (K, K): t = starts and moves."""
        s = jnp.asarray(params["selection"])
        x = self.frequencies(s.dtype)
        inner = x[1:-1]
        mean = inner * (1 + s) / (1 + s * inner)
        scale = jnp.sqrt(mean * (1 - mean) / self.population)
        edges = jnp.concatenate([jnp.full((1,), -jnp.inf, s.dtype), (x[1:] + x[:-1]) / 2, jnp.full((1,), jnp.inf, s.dtype)])
        moves = log_normal_mass(edges[:-1], edges[1:], mean[:, None], scale[:, None])
        fixed = jnp.full((1, self.n_grid), -jnp.inf, s.dtype)
        moves = jnp.concatenate([fixed.at[0, 0].set(0), moves, fixed.at[0, -1].set(0)])
        return {"log_initial": jnp.full_like(x, -np.log(self.n_grid)), "log_transition": moves}

    def _chain(self, natural: PyTree, data: PyTree) -> Chain:
        dtype = natural["log_initial"].dtype
        seen, total = (jnp.atleast_2d(jnp.asarray(data[name], dtype)) for name in ("count", "total"))
        x, unseen = self.frequencies(dtype)[:, None, None], total - seen
        ways = gammaln(total + 1) - gammaln(seen + 1) - gammaln(unseen + 1)
        # 0 log 0 is 0: what was not seen says nothing against an absent allele.
        log = lambda p, n: jnp.where(n > 0, n * jnp.log(jnp.where(p > 0, p, 1)) + jnp.where(p > 0, 0, -jnp.inf), 0)  # noqa: E731
        scores = ways + log(x, seen) + log(1 - x, unseen)
        return Chain(natural["log_initial"], natural["log_transition"], scores, jnp.ones(seen.shape, bool))

    def log_marginal(self, natural: PyTree, data: PyTree, rows: Rows) -> Array:
        return chain.log_partition(*self._chain(natural, data).astuple(), hard=rows.hard)

    def _as_given(self, found: PyTree, data: Any, axis: int = 0) -> PyTree:
        return found if np.ndim(data["count"]) > 1 else jax.tree.map(lambda x: x.squeeze(axis), found)

    def chain(self, params: Params, data: PyTree) -> Chain:
        return self._chain(self.natural(params), data)

    def n_observations(self, data: PyTree) -> Array:
        """(B,) generations of each locus that were sampled."""
        return (jnp.atleast_2d(jnp.asarray(data["total"])) > 0).sum(1)

    def validate(self, data: Any) -> dict[str, np.ndarray]:
        """Floats (B, T).

        Raises:
            ValueError: for other keys or shapes, counts that are none, more copies than were sampled, a population
                below 2.
        """
        check_positive_int(self.n_grid, "n_grid", 3)
        if not float(self.population) >= 2:
            raise ValueError(f"population must be at least 2 gene copies; got {self.population}")
        if not isinstance(data, dict) or set(data) != {"count", "total"}:
            raise ValueError(
                f"data must be a dict of 'count' and 'total' (B, T); got {data if isinstance(data, str) else type(data)}"
            )
        out = {}
        for name in ("count", "total"):
            array = np.atleast_2d(numeric(data[name], f"data[{name!r}]"))
            if not array.shape[-1]:
                raise ValueError(f"data[{name!r}] must hold generations (B, T); got shape {array.shape}")
            check_rows(array, (array >= 0) & (array == np.floor(array)), "counts (non-negative integers)", f"data[{name!r}]")
            out[name] = floating(array, f"data[{name!r}]")
        if out["count"].shape != out["total"].shape or out["count"].ndim != 2:
            raise ValueError(f"data must be 'count' and 'total' of one shape (B, T); got {[x.shape for x in out.values()]}")
        check_rows(out["count"], out["count"] <= out["total"], "at most data['total']", "data['count']")
        return out

    def template(self, data: PyTree) -> Params:
        return {"selection": jnp.zeros((), data["count"].dtype)}

    def initialize(self, key: Array | None, data: PyTree, weight: Array) -> Params:
        """No selection."""
        del key, weight
        return self.template(data)

    def n_free_params(self, data: PyTree) -> int:
        del data
        return 1

    def sample(self, key: Array, params: Params, n: int, n_steps: int = 100, total: int = 50) -> dict[str, Array]:
        """`total` copies sampled in each of `n_steps` generations of n loci."""
        check_positive_int(n_steps, "n_steps")
        natural = self.natural(jax.tree.map(jnp.asarray, params))
        which, what = jax.random.split(key)
        path = chain.sample(which, natural["log_initial"], natural["log_transition"], n, n_steps)
        x = self.frequencies(jnp.asarray(params["selection"]).dtype)[path]
        totals = jnp.full(x.shape, float(total), x.dtype)
        return {"count": jax.random.binomial(what, totals, x).astype(x.dtype), "total": totals}
