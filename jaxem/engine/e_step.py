"""The E-step is a gradient: value and gradient of the log-marginal in the natural parameters, summed over blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.model import Model
from jaxem.numerics.blocks import Blocks, fold, refined
from jaxem.numerics.trees import any_vmapped
from jaxem.pytree import PyTree, struct
from jaxem.types import Params, Rows


@struct
class Expectation:
    """What an E-step at `params` returns.

    Attributes:
        loglik: sum over data of weight * log p, a scalar.
        stats: expected sufficient statistics, shaped like `model.centered(params).natural(params)`.
        local: per-datum parameters at `params`, leaves (n_blocks, block, ...), or None.
    """

    loglik: Array
    stats: PyTree
    local: PyTree


def weighted_total(log_prob: Array, weight: Array) -> Array:
    """`weight @ log_prob` in which an absent row adds zero even where its log-probability is infinite.

    Raises:
        TypeError: where there is not one log-probability for each row: a sum over rows would be counted n times.
    """
    if jnp.shape(log_prob) != weight.shape:
        wanted = f"one number for each of n data, an array of shape (n,), here {weight.shape}"
        raise TypeError(f"log_marginal must give {wanted}; got shape {jnp.shape(log_prob)}")
    present = weight > 0
    return jnp.where(present, weight * jnp.where(present, log_prob, 0), 0).sum()


def block_rows(model: Model, params: Params, block: Blocks, local: PyTree) -> Rows:
    """The per-datum inputs of `log_marginal` for one block."""
    scores = model.scores(params, block.data) if model.scores else None
    return Rows(local=local, scores=scores, labels=block.labels, hard=block.hard)


def unchanged(data: PyTree) -> PyTree:
    """Data that are in the model's coordinates already."""
    return data


def update_local(
    model: Model, params: Params, blocks: Blocks, previous: PyTree, convert: Callable[[PyTree], PyTree] = unchanged
) -> PyTree:
    """Per-datum parameters at `params`, started from `previous`; before and outside the differentiated function."""
    if model.local is None:
        return None
    packed = model.pack(model.natural(params))
    return jax.lax.map(lambda b: model.local(packed, convert(b[0]), b[1]), (blocks.data, previous))


def e_step(
    model: Model,
    params: Params,
    blocks: Blocks,
    previous: PyTree = None,
    convert: Callable[[PyTree], PyTree] = unchanged,
) -> Expectation:
    """One pass over the data at `params`.

    Args:
        model: the model; its statistics are taken about `params` (see `Model.centered`).
        params: where the expectation is taken.
        blocks: the data.
        previous: per-datum parameters to start `model.local` from, or None to start cold.
        convert: what turns the data of a block into those of the model, block by block in the cache.
    """
    model = model.centered(params)
    which, variants = model.variants(params)
    local = update_local(variants[-1], params, blocks, previous, convert)

    # A safer variant holds more numbers for each row: smaller blocks keep it in a CPU's cache.
    finer, finer_local = refined((blocks, local), 4 if jax.default_backend() == "cpu" else 1)

    def by(i: int) -> tuple[Array, PyTree]:
        """The pass by variant i or, where that one is not called for, by a cheaper one."""
        if i == 0:
            return _pass(variants[0], params, blocks, local, convert)
        safer = partial(_pass, variants[i], params, finer, finer_local, convert)
        # A cond on what holds in any restart stays a branch under vmap.
        return jax.lax.cond(any_vmapped(which >= i), safer, lambda: by(i - 1))

    loglik, stats = blocks.over_devices(by(len(variants) - 1))
    return Expectation(loglik, stats, local)


def _pass(model: Model, params: Params, blocks: Blocks, local: PyTree, convert: Callable) -> tuple[Array, PyTree]:
    if model.e_step is not None:

        def own(block, local):
            rows = Rows(local=local, labels=block.labels, hard=block.hard)
            return model.e_step(params, convert(block.data), block.weight, rows)

        return fold(own, blocks, local)
    packed, pull = jax.vjp(model.pack, model.natural(params))

    def derived(block, local):
        block = dataclasses.replace(block, data=convert(block.data))
        rows = block_rows(model, params, block, local)

        def total(eta):
            return weighted_total(model.log_marginal(eta, block.data, rows), block.weight)

        return jax.value_and_grad(total)(packed)

    loglik, gradient = fold(derived, blocks, local)
    return loglik, pull(gradient)[0]
