"""One fit by several processes: run this in each of them; all print the same.

    python benchmarks/distributed.py --coordinator localhost:1234 --processes 2 --process 0 &
    python benchmarks/distributed.py --coordinator localhost:1234 --processes 2 --process 1

Under SLURM: srun --ntasks 2 python benchmarks/distributed.py
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import jax
import numpy as np

import jaxem


def rows(n: int, process: int, n_processes: int) -> np.ndarray:
    """Every `n_processes`-th row of data that all processes could draw: each would read its own file instead."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 4)) + 3 * rng.integers(3, size=(n, 1))
    return np.array_split(x, n_processes)[process]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--coordinator", help="host:port of process 0; under SLURM leave all three out")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process", type=int)
    parser.add_argument("--rows", type=int, default=100_001)
    parser.add_argument("--restarts", type=int, default=2)
    parser.add_argument("--max-steps", type=int, default=100)
    parser.add_argument("--out", type=Path, help="write parameters and log-likelihood to OUT.<process>.npz")
    arguments = parser.parse_args()

    jaxem.distributed.initialize(arguments.coordinator, arguments.processes, arguments.process)
    me, count = jax.process_index(), jax.process_count()
    print(f"process {me} of {count}, {jax.local_device_count()} of {jax.device_count()} devices, pid {os.getpid()}", flush=True)
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    begun = time.perf_counter()
    result = jaxem.fit(
        jaxem.GaussianMixture(3), rows(arguments.rows, me, count), mesh=mesh, key=jax.random.key(0),
        n_restarts=arguments.restarts, max_steps=arguments.max_steps, stop=jaxem.Stop(loglik_rtol=None),
    )  # fmt: skip
    print(f"{time.perf_counter() - begun:.1f} s\n{result}", flush=True)
    if arguments.out:
        leaves = {jax.tree_util.keystr(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(result.params)}
        np.savez(f"{arguments.out}.{me}.npz", loglik=np.asarray(result.loglik), **leaves)


if __name__ == "__main__":
    main()
