"""A Gaussian mixture fitted to Parquet on disk, more than memory need hold: rows a second and peak memory.

    python benchmarks/stream.py [--rows 1e8] [--in-memory 1e7] [--steps 3] [--turns 2] [--folder DIR] [--out FILE]

Makes `rows` x 8 float32 columns (32 bytes a row) in a temporary folder, and fits 16 components with full covariances
in processes of their own, in turns: in memory on the first rows, from the stream on all, in memory again. Rows a second are
those of one iteration: of the stream the time from one pass's begin to the next one's, the first (which compiles)
left out; in memory the difference of two runs that differ in their number of iterations alone. Beside it, seconds of
CPU for a million rows: what does not depend on who else computes. Peak memory is the operating system's figure for
the whole process, Python, JAX and the compiler included.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

K, D, CHUNK = 16, 8, 1 << 20


def means() -> np.ndarray:
    return 3 * np.random.default_rng(0).normal(size=(K, D)).astype(np.float32)


def make(path: Path, rows: int) -> None:
    """Write the table, a row group for each chunk."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    rng, centers = np.random.default_rng(1), means()
    schema = arrow.schema([(f"x{j}", arrow.float32()) for j in range(D)])
    # No two of these numbers are equal: a dictionary would only be in the way.
    with parquet.ParquetWriter(path, schema, use_dictionary=False) as file:
        for i in range(0, rows, CHUNK):
            n = min(CHUNK, rows - i)
            x = centers[rng.integers(K, size=n)] + rng.standard_normal((n, D), dtype=np.float32)
            file.write_table(arrow.Table.from_arrays([arrow.array(np.ascontiguousarray(c)) for c in x.T], schema=schema))


def problem() -> tuple[Any, dict[str, Any]]:
    """The model, and a start that is near but not at the optimum."""
    import jaxem

    start = means() + np.random.default_rng(2).normal(size=(K, D)).astype(np.float32)
    components = {"mean": start, "covariance": np.broadcast_to(2 * np.eye(D, dtype=np.float32), (K, D, D))}
    options = {"init": {"weights": np.full(K, 1 / K, np.float32), "components": components}}
    return jaxem.GaussianMixture(K), {**options, "stop": jaxem.Stop(loglik_rtol=None)}


def stream(path: Path, steps: int) -> dict[str, float]:
    """Seconds of one pass, wall and CPU, as the median over passes."""
    import jaxem

    begun = []

    class Timed(jaxem.sources.Columns):
        def __iter__(self) -> Iterator[Any]:
            begun.append((time.perf_counter(), time.process_time()))
            return super().__iter__()

    model, options = problem()
    result = jaxem.fit_stream(model, Timed(path), max_steps=steps, **options)
    begun.append((time.perf_counter(), time.process_time()))
    wall, cpu = np.median(np.diff(begun, axis=0)[2:], 0)  # the survey, and the pass that compiles, left out
    return {"wall": wall, "cpu": cpu, "loglik": float(result.loglik)}


def in_memory(path: Path, rows: int) -> dict[str, float]:
    """Seconds of one iteration, wall and CPU."""
    import jaxem

    x = np.empty((rows, D), np.float32)
    filled = 0
    for batch in jaxem.sources.Columns(path):
        part = batch[: rows - filled]
        x[filled : filled + len(part)] = part
        filled += len(part)
        if filled == rows:
            break
    model, options = problem()
    jaxem.fit(model, x, max_steps=1, **options)
    seconds = []
    for steps in (1, 9, 1, 9):
        before = time.perf_counter(), time.process_time()
        jaxem.fit(model, x, max_steps=steps, **options)
        seconds.append((time.perf_counter() - before[0], time.process_time() - before[1]))
    wall, cpu = (seconds[1][i] + seconds[3][i] - seconds[0][i] - seconds[2][i] for i in (0, 1))
    return {"wall": wall / 16, "cpu": cpu / 16}


def child(*task: Any) -> dict[str, float]:
    """What a process of its own found, and its peak memory in bytes."""
    done = subprocess.run([sys.executable, __file__, "--child", *map(str, task)], stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=lambda s: int(float(s)), default=100_000_000)
    parser.add_argument("--in-memory", type=lambda s: int(float(s)), default=10_000_000)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--folder")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        kind, path, number = args.child
        found = (stream if kind == "stream" else in_memory)(Path(path), int(number))
        found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print(json.dumps(found))
        return

    import jax

    few = min(args.in_memory, args.rows)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "rows.parquet"
        begin = time.perf_counter()
        make(path, args.rows)
        size, took = path.stat().st_size, time.perf_counter() - begin
        print(f"{args.rows} rows, {size / 1e9:.2f} GB, made in {took:.0f} s", flush=True)
        turn = [("in memory", few, ("memory", path, few)), ("stream", args.rows, ("stream", path, args.steps))]
        runs = [(name, rows, child(*task)) for name, rows, task in [*turn * args.turns, turn[0]]]
    lines = [
        f"jax {jax.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[1]:.1f} over the last 5 minutes;"
        f" {args.rows:.0e} rows x {D} float32 columns of Parquet, {size / 1e9:.2f} GB; K = {K}, full covariances",
        "",
        "| fit | rows | seconds an iteration | million rows a second | CPU seconds for a million rows | peak memory, GB |",
        "|---|---|---|---|---|---|",
    ]
    for name, rows, run in runs:
        rate, cpu = rows / run["wall"] / 1e6, run["cpu"] / rows * 1e6
        lines.append(f"| {name} | {rows:.0e} | {run['wall']:.2f} | {rate:.2f} | {cpu:.3f} | {run['peak'] / 1e9:.2f} |")
    seconds = {
        name: np.mean([run["wall"] / rows for kind, rows, run in runs if kind == name]) for name in ("in memory", "stream")
    }
    share = seconds["in memory"] / seconds["stream"]
    lines += ["", f"Rows a second of the stream over those in memory: {share:.0%}"]
    print("\n".join(lines))
    if args.out:
        args.out.write_text(
            f"# Parquet streamed from disk\n\n`{' '.join(['python', *sys.argv])}`\n\n" + "\n".join(lines) + "\n"
        )


if __name__ == "__main__":
    main()
