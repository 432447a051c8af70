"""What running in segments costs: a fit called plainly against the same loop compiled whole, at about 10 ms an iteration.

    python benchmarks/segments.py [--steps 300] [--repeats 7]

The two are run in alternation; printed are medians in milliseconds per iteration, and their ratio, also with a time
limit and with checkpoints every second.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxem


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rows", type=int, default=60_000)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(args.rows, 8)) + 2 * rng.integers(8, size=(args.rows, 1))).astype(np.float32)
    model, key, stop = jaxem.GaussianMixture(8), jax.random.key(0), jaxem.Stop(None)

    def plainly(steps: int, **options) -> None:
        jax.block_until_ready(jaxem.fit(model, x, key=key, stop=stop, max_steps=steps, **options).params)

    whole = jax.jit(lambda x, steps: jaxem.fit(model, x, key=key, stop=stop, max_steps=steps).params)
    on_device = jnp.asarray(x)
    ways = {
        "one compiled loop": lambda steps: jax.block_until_ready(whole(on_device, steps)),
        "segments": plainly,
        "segments, time limit": lambda steps: plainly(steps, max_seconds=1e6),
    }

    def seconds(run, steps: int) -> float:
        begun = time.perf_counter()
        run(steps)
        return time.perf_counter() - begun

    with tempfile.TemporaryDirectory() as folder:
        names = iter(range(10**6))
        ways["segments, checkpoints every second"] = lambda steps: plainly(
            steps, checkpoint=jaxem.Checkpoint(f"{folder}/{next(names)}", every_seconds=1)
        )
        for run in ways.values():
            run(1)
        # The difference of two runs that differ in their number of steps alone.
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.repeats):
            for name, run in ways.items():
                taken[name].append((seconds(run, args.steps) - seconds(run, args.steps // 5)) / (args.steps * 4 / 5))
    base = statistics.median(taken["one compiled loop"])
    for name, each in taken.items():
        middle = statistics.median(each)
        print(f"{name:36s} {1e3 * middle:7.3f} ms an iteration, {middle / base:.3f}x", flush=True)


if __name__ == "__main__":
    main()
