"""JAX's own switches, set as jaxem's code needs them, whatever the caller has them at."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def own_switches() -> Iterator[None]:
    """Products in full precision, and none of the switches with which a caller hunts faults in code of their own.

    A NaN inside a fit is a restart's status, not an error that ends them all; and rank or dtype promotion is no fault here.
    """
    with (
        jax.default_matmul_precision("highest"),
        jax.debug_nans(False),
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
    ):
        yield
