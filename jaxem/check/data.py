"""Laws of the data: an E-step is a weighted sum over rows, however it is cut, ordered, batched or compiled."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxem.check.case import Case, chart, expectation, quick_jit, rows_log_prob
from jaxem.check.report import Skip, compare, law, require
from jaxem.engine.e_step import e_step, weighted_total
from jaxem.engine.mesh import spread
from jaxem.fitting.rows import shared_out
from jaxem.numerics.blocks import cut, n_rows


def _matches(case: Case, got, weight, what: str) -> None:
    compare(got, case.sum_of_rows(weight), case.bound(weight), f"(loglik, stats) of {what}: ")


@law("additivity")
def additivity(case: Case) -> None:
    """The log-likelihood and statistics of all rows are the sums of those of each."""
    case.needs_rows()
    ones = np.ones(case.n)
    _matches(case, case.expectation(weight=ones), ones, "all rows against the sum over rows")


@law("weights-honoured")
def weights_honoured(case: Case) -> None:
    """Log-likelihood and statistics are linear in positive weights."""
    weight = case.rng.uniform(0.5, 2.5, case.n)
    _matches(case, case.expectation(weight=weight), weight, "weighted rows")


@law("padding")
def padding(case: Case) -> None:
    """Blocks that do not divide N change nothing, and leak no NaN into values or gradients."""
    case.needs_rows()
    block = _uneven(case.n)
    _matches(case, case.expectation(block_size=block), case.weight, f"blocks of {block} rows, the last one padded")
    data, weight = _with_absent(case)
    gradient = _padded_gradient(case.model, case.params, data, jnp.asarray(weight, case.dtype))
    bad = int(np.sum(~np.isfinite(np.asarray(gradient))))
    require(not bad, f"the gradient with rows of weight zero must be finite; got {bad} of {gradient.size} entries that are not")


def _uneven(n: int) -> int:
    """A block size that leaves a remainder after the cut."""
    for n_blocks in range(3, n):
        if -(-n // n_blocks) * n_blocks != n:
            return -(-n // n_blocks)
    raise Skip(f"{n} rows are too few to need padding")


def _with_absent(case: Case):
    """Data whose later half holds NaN (or a value that no data hold), and weights that say it is absent."""
    weight = np.where(np.arange(case.n) < (case.n + 1) // 2, 1.0, 0.0)

    def spoil(x):
        value = jnp.nan if jnp.issubdtype(x.dtype, jnp.inexact) else np.iinfo(np.int8).min if x.dtype != bool else False
        present = jnp.asarray(weight > 0).reshape(-1, *[1] * (x.ndim - 1))
        return jnp.where(present, x, jnp.asarray(value).astype(x.dtype))

    return jax.tree.map(spoil, case.data), weight


@quick_jit
def _padded_gradient(model, params, data, weight):
    vector, back = chart(model, params)
    blocks = cut(data, weight, None, n_rows(data))
    data, weight = jax.tree.map(lambda x: x[0], (blocks.data, blocks.weight))
    found = e_step(model, params, blocks)
    local = jax.tree.map(lambda x: x[0], found.local)
    return jax.grad(lambda v: weighted_total(rows_log_prob(model, params, back(v), data, local), weight))(vector)


@law("weight-zero-is-absent")
def weight_zero(case: Case) -> None:
    """A row of weight zero, or an entry of a datum that is masked, adds nothing, whatever it holds."""
    masked = case.model.mask is not None and case.model.mask in case.data
    if masked:
        _masked_entries(case)
    if case.n > 1 or not masked:
        case.needs_rows()
        data, weight = _with_absent(case)
        _matches(case, case.expectation(data=data, weight=weight), weight, "half the rows absent and holding NaN")


def _masked_entries(case: Case) -> None:
    """What the leaves of the mask's shape hold where it is False changes nothing."""
    mask = case.data[case.model.mask]

    def spoil(x):
        inexact = x.shape == mask.shape and jnp.issubdtype(x.dtype, jnp.inexact)
        return jnp.where(mask, x, jnp.nan) if inexact else x

    _matches(case, case.expectation(data=jax.tree.map(spoil, case.data)), case.weight, "masked entries that hold NaN")


@law("weight-two-is-twice")
def weight_two(case: Case) -> None:
    """Rows repeated are rows weighted."""
    case.needs_rows()
    drawn = case.rng.integers(case.n, size=case.n)
    counts = np.bincount(drawn, minlength=case.n).astype(float)
    repeated = jax.tree.map(lambda x: x[jnp.asarray(drawn)], case.data)
    _matches(case, case.expectation(data=repeated, weight=np.ones(case.n)), counts, "repeated rows")
    _matches(case, case.expectation(weight=counts), counts, "rows weighted by their counts")


@law("row-order")
def row_order(case: Case) -> None:
    """The order of the rows changes nothing but rounding."""
    case.needs_rows()
    order = case.rng.permutation(case.n)
    shuffled = jax.tree.map(lambda x: x[jnp.asarray(order)], case.data)
    _matches(case, case.expectation(data=shuffled, weight=case.weight[order]), case.weight, "shuffled rows")


@law("block-size")
def block_size(case: Case) -> None:
    """The size of a block changes nothing but rounding."""
    case.needs_rows()
    size = -(-case.n // 2)
    _matches(case, case.expectation(block_size=size), case.weight, f"blocks of {size} rows")


@law("device-count")
def device_count(case: Case) -> None:
    """Sharing rows out over devices changes nothing but rounding."""
    devices = jax.local_devices()
    if len(devices) == 1:
        raise Skip("there is only one device")
    mesh = Mesh(np.array(devices[: min(len(devices), case.n)]), ("data",))
    got = _on_mesh(case.model, case.params, case.data, case.weight, mesh)
    _matches(case, got, case.weight, f"rows on {mesh.size} devices")


@functools.partial(quick_jit, static_argnames="mesh")
def _on_mesh(model, params, data, weight, mesh):
    def own(model, params, data, weight):
        blocks = dataclasses.replace(cut(data, weight, None, n_rows(data)), axes=mesh.axis_names)
        found = e_step(model, params, blocks)
        return found.loglik, found.stats

    rows = P(mesh.axis_names)
    data, weight, _ = shared_out(mesh, data, weight, None)
    return spread(own, mesh, (P(), P(), rows, rows), P())(model, params, data, weight)


@law("vmap-or-loop")
def vmap_or_loop(case: Case) -> None:
    """Restarts side by side are restarts one by one."""
    params = [case.params, case.nearby(case.params, 0.1)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *params)
    together = jax.vmap(lambda p: expectation(case.model, p, case.data, case.weight, case.n))(stacked)
    for i, each in enumerate(params):
        alone = case.expectation(params=each)
        # Statistics about other parameters are of another size: that of the larger of the two.
        bound = jax.tree.map(lambda b, x: b + 1e3 * case.eps * np.abs(x).max(initial=0), case.bound(case.weight), alone)
        compare(jax.tree.map(lambda x, i=i: x[i], together), alone, bound, f"(loglik, stats) of restart {i} under vmap: ")


@law("jit-or-eager")
def jit_or_eager(case: Case) -> None:
    """Compilation changes nothing but rounding."""
    few = min(case.n, 8)
    data = jax.tree.map(lambda x: x[:few], case.data)
    found = e_step(case.model, case.params, cut(data, case.weight[:few], None, few))
    weight = np.where(np.arange(case.n) < few, np.asarray(case.weight), 0)
    _matches(case, (found.loglik, found.stats), weight, "an E-step that is not compiled")
