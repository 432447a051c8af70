"""Memory as `jaxem.plan` foresees it, against what a fit takes: the rise of resident memory in a fresh process.

    python benchmarks/plan.py [--sizes 200000x32x8x1,...]

Each size N x D x K x R is a Gaussian mixture of K clusters in float32. A small fit comes first, so that the compiler itself is
loaded; what the data take that the caller holds is on neither side.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

SIZES = "1000000x32x8x1,1000000x16x8x4,400000x64x16x4"


def measure(n: int, d: int, k: int, r: int) -> None:
    """In this process: print the bytes planned and the bytes taken."""
    import threading
    import time
    from pathlib import Path

    import jax
    import numpy as np

    import jaxem

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    model, stop = jaxem.GaussianMixture(k), jaxem.Stop(None)
    rng = np.random.default_rng(0)
    centers = 6 * rng.normal(size=(k, d))

    def clusters(n: int) -> np.ndarray:
        return (centers[rng.integers(k, size=n)] + rng.normal(size=(n, d))).astype(np.float32)

    planned = jaxem.plan(model, jax.ShapeDtypeStruct((n, d), np.float32), n_restarts=r)
    jaxem.fit(model, clusters(5_000), key=jax.random.key(0), n_restarts=r, max_steps=2)
    x = clusters(n)
    before, most, done = resident(), [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            most[0] = max(most[0], resident())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    jaxem.fit(model, x, key=jax.random.key(0), n_restarts=r, stop=stop, max_steps=3)
    done.set()
    watcher.join()
    print(planned.peak_bytes, most[0] - before, planned.start_bytes, planned.loop_bytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default=SIZES)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        measure(*map(int, args.one.split("x")))
        return
    for size in args.sizes.split(","):
        done = subprocess.run([sys.executable, __file__, "--one", size], capture_output=True, text=True)
        if done.returncode:
            print(f"{size}: {done.stderr.strip().splitlines()[-1]}", flush=True)
            continue
        planned, taken, start, loop = map(int, done.stdout.split())
        parts = f"start {start / 1e6:.0f}, loop {loop / 1e6:.0f}"
        print(
            f"{size}: planned {planned / 1e6:.0f} MB ({parts}), taken {taken / 1e6:.0f} MB: {planned / taken:.2f}x", flush=True
        )


if __name__ == "__main__":
    main()
