"""Any density that a function gives, a neural network's included: no finite statistics, so Optax passes over the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem import constraints as sets
from jaxem.data.validation import check_size, floating, numeric
from jaxem.families.base import Family
from jaxem.numerics.blocks import float_dtype
from jaxem.pytree import PyTree, static, struct
from jaxem.types import Params


@struct
class Density(Family):
    """See `density`."""

    fn: Callable[[Params, PyTree], Array] = static()
    batched: bool = static()
    init: PyTree
    set: Any = None

    @property
    def constraints(self) -> Any:
        return self.set

    def natural(self, params: Params) -> dict[str, Array]:
        """Nothing: there are no finite statistics."""
        del params
        return {}

    def log_density(self, params: Params, data: PyTree) -> Array:
        """(n, K) log p(x_n | component k)."""
        return self.fn(params, data) if self.batched else jax.vmap(self.fn, (None, 0))(params, data)

    def _start(self, key: Array | None, data: PyTree) -> Params:
        """The starting values given, or drawn."""
        dtype = float_dtype(data)
        start = self.init(jax.random.key(0) if key is None else key) if callable(self.init) else self.init
        return jax.tree.map(lambda x: jnp.asarray(x, dtype), start)

    def own_start(self, mixture: Any, strategy: Any, key: Array | None, data: PyTree, weight: Array) -> Params:
        """The starting values given, whatever the strategy."""
        del strategy, weight
        return {**mixture.template(data), "components": self._start(key, data)}

    def template(self, data: PyTree, n_components: int) -> Params:
        del n_components
        return self._start(None, data)

    def validate(self, data: Any) -> Any:
        """Arrays of numbers, one for each row.

        Raises:
            ValueError: where the function, by shapes alone, does not give one number for each component.
        """

        def leaf(x: Any) -> np.ndarray:
            array = numeric(x, "data")
            check_size(array, "data")
            return floating(array, "data") if array.dtype.kind == "f" else array

        data = jax.tree.map(leaf, data, is_leaf=lambda x: isinstance(x, list))
        rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct((min(len(x), 3), *x.shape[1:]), x.dtype), data)
        params = jax.eval_shape(lambda: self._start(None, data))
        found = jax.eval_shape(self.log_density, params, rows)
        if getattr(found, "ndim", 0) != 2:
            wanted = "(params, rows) -> (n, K)" if self.batched else "(params, x) -> (K,), for one datum x"
            shape = getattr(found, "shape", type(found).__name__)
            raise ValueError(f"density's fn must be {wanted}; got {shape if self.batched else shape[1:]}")
        return data

    def n_free_params(self, n_components: int, data: PyTree) -> int:
        free = jax.eval_shape(lambda p: sets.to_free(self.constraints, p), self.template(data, n_components))
        return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(free))


def density(
    log_prob: Callable[[Params, PyTree], Array],
    *,
    init: PyTree | Callable[[Array], PyTree],
    constraints: Any = None,
    batched: bool = False,
) -> Density:
    """A family from a function, for mixtures and hidden Markov models alike.

    Its M-step ascends the expected log-density by Optax, with passes over the data. The function is hashed by
    identity: define it once.

    Args:
        log_prob: (params, x) -> (K,) log p(x | component), x one datum.
        init: parameters to start from, a pytree; or a function from a random key to them, called once for every restart.
        constraints: prefix tree of `jaxem.constraints`; None is real numbers.
        batched: `log_prob` takes rows that lead with n, and gives (n, K).
    """
    return Density(log_prob, batched, jax.tree_util.Partial(init) if callable(init) else init, constraints)
