"""Do rounds lose? The best of R = 64 restarts with rounds against finishing every restart, over many keys.

    python benchmarks/rounds.py [--keys 100] [--restarts 64] [--problems easy,hard]

Two problems: an easy one (separated clusters) and a hard one (2-D, K = 10, N = 3 000, overlapping, where
few restarts find the best). For each it prints how often rounds reach the optimum of the full run, the
largest loss, and the ratio of the times.
"""

from __future__ import annotations

import argparse
import time

import jax
import numpy as np

import jaxem


def problem(name: str) -> tuple[np.ndarray, int]:
    """Data and number of components."""
    rng = np.random.default_rng(11)
    n, k, spread = (3_000, 3, 6.0) if name == "easy" else (3_000, 10, 2.0)
    means = rng.normal(size=(k, 2)) * spread
    mixing = rng.normal(size=(k, 2, 2)) / 2 + np.eye(2)
    z = rng.integers(k, size=n)
    return means[z] + np.einsum("nde,ne->nd", mixing[z], rng.normal(size=(n, 2))), k


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keys", type=int, default=100)
    parser.add_argument("--restarts", type=int, default=64)
    parser.add_argument("--problems", default="easy,hard")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    for name in args.problems.split(","):
        x, k = problem(name)
        model = jaxem.GaussianMixture(k)

        def best(seed: int, rounds, x=x, model=model) -> tuple[float, np.ndarray, float]:
            begin = time.perf_counter()
            result = jaxem.fit(
                model, x, key=jax.random.key(seed), n_restarts=args.restarts, rounds=rounds,
                stop=jaxem.Stop(loglik_rtol=1e-9), max_steps=2_000,
            )  # fmt: skip
            loglik = float(result.loglik)
            return loglik, np.asarray(result.restarts.loglik), time.perf_counter() - begin

        best(0, None), best(0, jaxem.Rounds())
        losses, hits, full_time, race_time = [], [], 0.0, 0.0
        for seed in range(args.keys):
            full, restarts, seconds = best(seed, None)
            race, _, race_seconds = best(seed, jaxem.Rounds())
            losses.append(full - race)
            hits.append((restarts > full - 1e-3).sum())
            full_time, race_time = full_time + seconds, race_time + race_seconds
        reached = sum(loss < 1e-3 for loss in losses)
        print(
            f"{name}: rounds reach the optimum of all restarts for {reached} of {args.keys} keys, largest loss"
            f" {max(losses):.3f};"
            f" median restarts at the best {np.median(hits):.0f} of {args.restarts};"
            f" time {full_time:.1f} s against {race_time:.1f} s: {full_time / race_time:.1f}x",
            flush=True,
        )


if __name__ == "__main__":
    main()
