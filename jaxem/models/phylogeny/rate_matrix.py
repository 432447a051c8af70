"""Rates at which one nucleotide gives way to another: JC, F81, HKY, GTR, UNREST."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem import constraints as sets
from jaxem.data.validation import numeric
from jaxem.numerics.logs import divided
from jaxem.numerics.roots import root_of_decreasing
from jaxem.pytree import static, struct
from jaxem.types import Params

#: Pairs A-C, A-G, A-T, C-G, C-T, G-T, of which A-G and C-T are transitions, the others transversions.
_ONE_KIND, _TWO_KINDS, _SIX_KINDS = (0, 0, 0, 0, 0, 0), (1, 0, 1, 1, 0, 1), (0, 1, 2, 3, 4, 5)
N_STATES = 4
_UPPER = np.triu_indices(N_STATES, 1)


def _symmetric(kinds: tuple[int, ...]) -> tuple[int, ...]:
    table = np.zeros((N_STATES, N_STATES), int)
    table[_UPPER] = kinds
    return tuple(map(int, (table + table.T).reshape(-1)))


@struct
class RateMatrix:
    """Q with q_ij = s_kind(i, j) pi_j, or s_kind(i, j) alone, scaled to one expected substitution at frequencies pi.

    Parameters, where there is something to know: `exchange` (kinds,) s, which sum to one, for more than one kind;
    `frequencies` (4,) pi of A, C, G, T, for other than equal ones. Use `JC`, `F81`, `HKY`, `GTR` or `UNREST`.

    Attributes:
        kinds: kind of each of the 16 entries of Q, row after row; those of the diagonal mean nothing.
        reversible: whether rates are proportional to the frequency of what they lead to.
        equal: whether the frequencies are 1/4 each.
        estimated: whether frequencies are estimated by maximum likelihood, with the rest.
        frequencies: (4,) given frequencies, or where to start; None takes those of the data.
    """

    kinds: tuple[int, ...] = static()
    reversible: bool = static(default=True)
    equal: bool = static(default=False)
    estimated: bool = static(default=False)
    frequencies: Any = None

    @property
    def n_kinds(self) -> int:
        """Kinds of exchange."""
        return max(self.kinds) + 1

    @property
    def constraints(self) -> dict[str, Any]:
        """Those of the parameters there are."""
        exchange = {"exchange": sets.Simplex()} if self.n_kinds > 1 else {}
        return exchange if self.equal else exchange | {"frequencies": sets.Simplex() if self.estimated else sets.Fixed()}

    @property
    def n_free_params(self) -> int:
        """Number of free parameters; frequencies given or counted are none."""
        return self.n_kinds - 1 + (N_STATES - 1 if self.estimated else 0)

    def template(self, dtype: Any) -> Params:
        """Equal exchanges and frequencies."""
        start = {"exchange": jnp.full((self.n_kinds,), 1 / self.n_kinds, dtype), "frequencies": jnp.full((4,), 0.25, dtype)}
        return {name: start[name] for name in self.constraints}

    def initialize(self, counted: Array) -> Params:
        """Equal exchanges; frequencies given, or as `counted` (4,) in the data."""
        params = self.template(counted.dtype)
        if not self.equal:
            chosen = counted if self.frequencies is None else jnp.asarray(self.frequencies, counted.dtype)
            params["frequencies"] = chosen / chosen.sum()
        return params

    def check(self) -> None:
        """Raise ValueError for frequencies that are none."""
        if self.frequencies is None:
            return
        pi = numeric(self.frequencies, "frequencies")
        if pi.shape != (N_STATES,) or not (pi > 0).all() or abs(pi.sum() - 1) > 1e-4:
            raise ValueError(f"frequencies must be 4 positive numbers that sum to one, of A, C, G, T; got {pi}")

    def parts(self, params: Params) -> tuple[Array, Array]:
        """Exchanges (kinds,) and frequencies (4,), those that are no parameters included."""
        dtype = params["lengths"].dtype
        exchange = params["exchange"] if self.n_kinds > 1 else jnp.ones((1,), dtype)
        return exchange, jnp.full((N_STATES,), 0.25, dtype) if self.equal else params["frequencies"]

    def unscaled(self, exchange: Array, frequencies: Array) -> Array:
        """(4, 4) Q before it is scaled."""
        off = self._spread(exchange) * self._target(frequencies)
        return off - jnp.diag(off.sum(1))

    def matrix(self, params: Params) -> Array:
        """(4, 4) Q: rows the nucleotide before, one expected substitution in a unit of time."""
        exchange, frequencies = self.parts(params)
        q = self.unscaled(exchange, frequencies)
        return q / speed(q, frequencies)

    def update(self, exchange: Array, frequencies: Array, jumps: Array, time: Array, root: Array) -> tuple[Array, Array]:
        """Exchanges, then frequencies, each maximising the complete-data likelihood given the other; not scaled.

        Args:
            exchange: (kinds,).
            frequencies: (4,).
            jumps: (4, 4) expected numbers of substitutions.
            time: (4,) expected time with each nucleotide.
            root: (4,) expected nucleotides at the root.
        """
        if self.n_kinds > 1:
            counts, exposure = self._by_kind(jumps), self._by_kind(time[:, None] * self._target(frequencies))
            exchange = jnp.where(exposure > 0, divided(counts, exposure), exchange)
        if self.estimated:
            arrivals, exposure = root, jnp.zeros_like(root)
            if self.reversible:
                arrivals, exposure = root + jumps.sum(0), time @ self._spread(exchange)
            frequencies = _frequencies(arrivals, exposure)
        return exchange, frequencies

    def _spread(self, exchange: Array) -> Array:
        off = ~np.eye(N_STATES, dtype=bool)
        return jnp.where(off, exchange[np.reshape(self.kinds, (N_STATES, N_STATES))], 0)

    def _target(self, frequencies: Array) -> Array:
        return frequencies if self.reversible else jnp.ones_like(frequencies)

    def _by_kind(self, entries: Array) -> Array:
        off = np.flatnonzero(~np.eye(N_STATES, dtype=bool).reshape(-1))
        kinds = np.asarray(self.kinds)[off]
        return jnp.zeros((self.n_kinds,), entries.dtype).at[kinds].add(entries.reshape(-1)[off])


def speed(q: Array, frequencies: Array) -> Array:
    """Expected substitutions in a unit of time at these frequencies."""
    return -frequencies @ jnp.diagonal(q)


def _frequencies(arrivals: Array, exposure: Array) -> Array:
    """(4,) the maximum of sum a log pi - b pi on the simplex: pi = a / (b + mu), mu the root of sum pi = 1."""
    total = arrivals.sum()
    lowest = exposure.min()
    rest = exposure - lowest
    # At mu + min(b) = total every entry is at most a / total; near zero the entry of the smallest b alone exceeds one.
    tiny = jnp.finfo(total.dtype).eps * total
    mu = root_of_decreasing(lambda mu: jnp.log((arrivals / (rest + mu[:, None])).sum(-1)), tiny[None], total[None])[0]
    found = arrivals / (rest + mu)
    return found / found.sum()


def JC() -> RateMatrix:  # noqa: N802
    """Jukes and Cantor (1969): equal rates, equal frequencies."""
    return RateMatrix(_symmetric(_ONE_KIND), equal=True)


def F81(frequencies: Any = None, estimated: bool = False) -> RateMatrix:  # noqa: N802
    """Felsenstein (1981): rates proportional to the frequency of what they lead to. For the arguments see `GTR`."""
    return RateMatrix(_symmetric(_ONE_KIND), estimated=estimated, frequencies=frequencies)


def HKY(frequencies: Any = None, estimated: bool = False) -> RateMatrix:  # noqa: N802
    """Hasegawa, Kishino and Yano (1985): transitions, `exchange[0]`, and transversions, `exchange[1]`. See `GTR`."""
    return RateMatrix(_symmetric(_TWO_KINDS), estimated=estimated, frequencies=frequencies)


def GTR(frequencies: Any = None, estimated: bool = False) -> RateMatrix:  # noqa: N802
    """Tavare (1986): the general reversible model; `exchange` in the order A-C, A-G, A-T, C-G, C-T, G-T.

    Args:
        frequencies: (4,) of A, C, G, T at the root and in equilibrium; None takes those of the data.
        estimated: whether to estimate them by maximum likelihood.
    """
    return RateMatrix(_symmetric(_SIX_KINDS), estimated=estimated, frequencies=frequencies)


def UNREST(frequencies: Any = None, estimated: bool = False) -> RateMatrix:  # noqa: N802
    """Yang (1994): twelve rates, from A, then C, G, T, each to the others in this order; `frequencies` of the root alone.

    Where it is not reversible, the place of the root is identified: give it two children. For the arguments see `GTR`.
    """
    table = np.zeros((N_STATES, N_STATES), int)
    table[~np.eye(N_STATES, dtype=bool)] = range(12)
    return RateMatrix(tuple(map(int, table.reshape(-1))), False, estimated=estimated, frequencies=frequencies)
