"""Maxima made by chance: how often BIC finds the two clusters that made the data, by the rule that passes over restarts.

    python benchmarks/spurious.py [--columns 1,2,3,5] [--first 0] [--keep DIR]

20 sets of N = 60: half of the rows around 0, half around 6 sqrt(2 / D) in every column, unit spheres. K = 1..6, full
covariances, 128 restarts, of which the first 8 and 32 are the fits with fewer. Every restart tells its log-likelihood and, of
each component, its effective rows and its least eigenvalue relative to the pooled covariance; rules then choose among them.
Then what a rule costs: pairs of clusters of which one is truly narrow.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxem
from jaxem.engine.e_step import e_step
from jaxem.engine.problem import Problem
from jaxem.engine.restarts import run, settle, tier
from jaxem.families.base import FEW, THIN
from jaxem.fitting.arguments import task_of
from jaxem.fitting.checks import checked
from jaxem.fitting.coordinates import in_coordinates
from jaxem.fitting.solve import started

SETS, LARGEST, RESTARTS = 20, 6, 128


def clusters(seed: int, d: int, sd: float = 1, n: tuple[int, int] = (30, 30)) -> np.ndarray:
    """(N, D) two clusters, the second of standard deviation `sd`."""
    rng = np.random.default_rng(1000 + seed)
    return np.r_[rng.normal(0, 1, (n[0], d)), rng.normal(6 * np.sqrt(2 / d), sd, (n[1], d))]


@jax.jit
def ends(problem: Problem, restarts):
    """Log-likelihood, tier of the status, effective rows (K,) and least relative eigenvalues (K,) of every restart."""
    restarts = settle(problem, restarts)

    def one(params):
        count = e_step(problem.model, params, problem.blocks).stats["components"]["log_det"]
        covariance = params["components"]["covariance"]
        pooled = jnp.einsum("k,kde->de", count / count.sum(), covariance)
        root = jnp.linalg.inv(jnp.linalg.cholesky(pooled))
        return count, jnp.linalg.eigvalsh(root @ covariance @ root.T).min(-1)

    return restarts.loglik + problem.offset, tier(restarts.status), *jax.lax.map(one, restarts.params)


def every_restart(x: np.ndarray, k: int, n_restarts: int) -> list[np.ndarray]:
    """`ends` of a fit of K components."""
    task = task_of(jaxem.GaussianMixture(k), x, key=jax.random.key(0), n_restarts=n_restarts)
    race = started(in_coordinates(checked(task))[0])
    return [np.asarray(a) for a in ends(race.problem, jax.jit(run)(race.problem, race.queue).restarts)]


def collected(d: int, first: int, keep: Path | None) -> dict[str, np.ndarray]:
    """Every restart of every set and K, from the file of an earlier run where there is one."""
    file = keep / f"columns-{d}-from-{first}.npz" if keep else None
    if file and file.exists():
        return dict(np.load(file))
    out = {}
    for k in range(1, LARGEST + 1):
        for seed in range(first, first + SETS):
            found = every_restart(clusters(seed, d), k, RESTARTS if k > 1 else 1)
            out |= {f"{seed}_{k}_{name}": x for name, x in zip(("loglik", "tier", "count", "least"), found, strict=True)}
    if file:
        np.savez(file, **out)
    return out


def passes(count: np.ndarray, least: np.ndarray, d: int, thin: float, few: float) -> np.ndarray:
    """(R,) whether a restart is no work of chance, by the rule of these thresholds."""
    needed = d + 1
    return ~((count < needed) | ((least < thin) & (count < few * needed))).any(-1)


def chosen(found: dict[str, np.ndarray], seed: int, d: int, n_restarts: int, rule: Callable[..., np.ndarray]) -> int:
    """K of least BIC, as `jaxem.select` chooses it."""

    def candidate(k: int) -> tuple:
        loglik, tiers, count, least = (
            found[f"{seed}_{k}_{name}"][:n_restarts] for name in ("loglik", "tier", "count", "least")
        )
        chance = ~rule(count, least)
        best = np.lexsort((-loglik, chance, tiers))[0]
        free = k - 1 + k * d + k * d * (d + 1) // 2
        return tiers[best] > 1, chance[best], -2 * loglik[best] + np.log(60) * free, k

    return min(candidate(k) for k in range(1, LARGEST + 1))[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--columns", default="1,2,3,5")
    parser.add_argument("--first", type=int, default=0, help="seed of the first set")
    parser.add_argument("--keep", type=Path, help="directory for what the fits found, and to read it from")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    rules = {"none": (0, 0, False), "rows alone": (0, 0, True)}
    rules |= {f"thin {thin:g}, few {few:g}": (thin, few, True) for few in (3, 5, np.inf) for thin in (0.001, 0.01, 0.1)}
    print(f"sets of {SETS} in which BIC finds K = 2, from 8 / 32 / 128 restarts (the default: thin {THIN:g}, few {FEW})")
    for d in map(int, args.columns.split(",")):
        found = collected(d, args.first, args.keep)
        for name, (thin, few, on) in rules.items():

            def rule(count, least, thin=thin, few=few, on=on, d=d):
                return passes(count, least, d, thin, few) if on else np.ones(len(count), bool)

            counts = [
                sum(chosen(found, s, d, r, rule) == 2 for s in range(args.first, args.first + SETS)) for r in (8, 32, 128)
            ]
            print(f"D = {d}  {name:<20} {counts[0]:>3} {counts[1]:>3} {counts[2]:>3}", flush=True)
    print("of 10 pairs, D = 2, one truly narrow (rows, standard deviation): best of 8 restarts of K = 2 passed over")
    for n, sd in ((30, 0.1), (30, 0.03), (20, 0.1), (20, 0.03), (10, 0.3), (10, 0.1), (10, 0.03)):
        over = 0
        for seed in range(10):
            loglik, tiers, count, least = every_restart(clusters(seed, 2, sd, (60 - n, n)), 2, 8)
            best = np.lexsort((-loglik, tiers))[0]
            over += not passes(count[best], least[best], 2, THIN, FEW)
        print(f"{n:>3} rows of {sd:<5} {over}", flush=True)


if __name__ == "__main__":
    main()
