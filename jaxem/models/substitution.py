"""Nucleotide substitution along a given tree (Felsenstein 1981)."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem import constraints as sets
from jaxem.latents.tree import leaf_partials, log_partition, transition_matrices
from jaxem.numerics import safe_log
from jaxem.types import Model, Params, Rows, static, struct
from jaxem.validation import check_rows, check_size, numeric

PyTree = Any

N_STATES = 4


@struct
class Substitution(Model):
    """Jukes and Cantor's model (1969) with a length for every branch of a given tree.

    Parameter: `lengths` (E,), expected substitutions a site, for the branch above each node but the root.
    Data: (N, taxa) integer codes of site patterns, 0..3 for A, C, G, T and anything else for a gap; how often a
    pattern occurs is its weight. The likelihood does not depend on where along a branch the root is put, so of two
    branches at a root with two children only the sum is identified: let the root have three.

    Attributes:
        parents: parent of each node. Leaves come first, in the order of the data's columns; every parent comes
            after its children; the root is last, with parent -1.
    """

    parents: tuple[int, ...] = static()

    constraints: ClassVar[Any] = {"lengths": sets.NonNegative()}
    needs_key: ClassVar[bool] = False

    @property
    def n_taxa(self) -> int:
        """Number of leaves."""
        return len(set(range(len(self.parents))) - set(self.parents))

    def natural(self, params: Params) -> dict[str, Array]:
        """Leaves `log_jumps` (E, 4, 4), t = jumps; `exit` (E, 4), t = dwell times; `log_root` (4,)."""
        lengths = params["lengths"]
        n_branches = lengths.shape[0]
        rate = jnp.broadcast_to(safe_log(lengths / (N_STATES - 1))[:, None, None], (n_branches, N_STATES, N_STATES))
        return {
            "log_jumps": jnp.where(jnp.eye(N_STATES, dtype=bool), 0, rate),
            "exit": -jnp.broadcast_to(lengths[:, None], (n_branches, N_STATES)),
            "log_root": jnp.full((N_STATES,), -np.log(N_STATES), lengths.dtype),
        }

    def pack(self, natural: PyTree) -> PyTree:
        return {"transitions": transition_matrices(natural["log_jumps"], natural["exit"]), "log_root": natural["log_root"]}

    def log_marginal(self, natural: PyTree, data: Array, rows: Rows) -> Array:
        del rows
        partials = leaf_partials(data, N_STATES, natural["log_root"].dtype)
        return log_partition(natural["transitions"], natural["log_root"], partials, self.parents)

    def m_step(self, stats: PyTree, params: Params) -> Params:
        """Expected jumps over expected time (Holmes and Rubin 2002)."""
        jumps = jnp.maximum(stats["log_jumps"].sum((1, 2)), 0)
        dwell = stats["exit"].sum(1)
        return {"lengths": jnp.where(dwell > 0, jumps / jnp.where(dwell > 0, dwell, 1), params["lengths"])}

    def validate(self, data: Any) -> np.ndarray:
        """(N, taxa) int32.

        Raises:
            ValueError: for parents that are no tree in the order asked for, or data that do not fit it.
        """
        count = len(self.parents)
        ordered = all(node < parent < count for node, parent in enumerate(self.parents[:-1]))
        leaves_first = set(range(self.n_taxa)).isdisjoint(self.parents)
        if count < 2 or self.parents[-1] != -1 or not ordered or not leaves_first:
            raise ValueError(
                f"parents must list leaves first, children before parents, the root last as -1; got {self.parents}"
            )
        array = numeric(data, "data")
        if array.ndim != 2 or array.shape[1] != self.n_taxa:
            raise ValueError(f"data must have shape (N, {self.n_taxa}), a column for each leaf; got shape {array.shape}")
        check_size(array, "data")
        check_rows(array, np.isfinite(array) & (array == np.floor(array)), "integer codes")
        return array.astype(np.int32)

    def blank(self, data: Array) -> Params:
        del data
        return {"lengths": jnp.full((len(self.parents) - 1,), 0.1, jnp.zeros(()).dtype)}

    def initialize(self, key: Array | None, data: Array, weight: Array) -> Params:
        del key
        return jax.tree.map(lambda x: x.astype(weight.dtype), self.blank(data))

    def n_free_params(self, data: Array) -> int:
        del data
        return len(self.parents) - 1

    def sample(self, key: Array, params: Params, n: int) -> Array:
        """(n, taxa) codes, without gaps."""
        natural = self.natural(params)
        log_transitions = safe_log(transition_matrices(natural["log_jumps"], natural["exit"]))
        keys = jax.random.split(key, len(self.parents))
        root = len(self.parents) - 1
        states = {root: jax.random.categorical(keys[root], natural["log_root"], shape=(n,))}
        for node in reversed(range(root)):
            states[node] = jax.random.categorical(keys[node], log_transitions[node][states[self.parents[node]]])
        return jnp.stack([states[i] for i in range(self.n_taxa)], 1).astype(jnp.int32)
