"""Peak memory over the number of rows and over the longest row, each point a process of its own.

    python benchmarks/memory.py [--rows 1e4 1e5 1e6] [--longest 60 300 1000] [--components 256] [--out FILE]

Rows: `predict`, `log_prob` and `posterior` of a mixture of full covariances on N x 4 float64 rows, block by block as they are
called plainly, and all rows at once, as inside `jax.jit`; and the posterior written to a file. Longest row: 1 000 documents
of about 20 distinct words and one of many, fitted with LDA (10 topics, 3 steps). Figures are the operating system's
peak for the process less what it had when data and parameters were there.
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
from pathlib import Path
from typing import Any

import numpy as np


def peak() -> float:
    """Bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def answers(method: str, how: str, n: int, k: int) -> dict[str, float]:
    """Peak and seconds of one call."""
    import jax

    jax.config.update("jax_enable_x64", True)
    import jaxem

    x = np.random.default_rng(0).normal(size=(n, 4))
    model = jaxem.GaussianMixture(k)
    components = {"mean": x[:k], "covariance": np.broadcast_to(np.eye(4), (k, 4, 4))}
    params = {"weights": np.full(k, 1 / k), "components": components}
    call: Any = getattr(model, method)
    before, begin = peak(), time.perf_counter()
    if how == "out":
        with tempfile.TemporaryDirectory() as folder:
            call(params, x, out=np.lib.format.open_memmap(Path(folder) / "out.npy", "w+", np.float64, (n, k)))
    else:
        jax.block_until_ready((jax.jit(call) if how == "at once" else call)(params, x))
    return {"bytes": peak() - before, "seconds": time.perf_counter() - begin}


def documents(longest: int) -> dict[str, float]:
    """Bytes of the arrays and of the entries, peak and seconds of a fit."""
    import jax

    import jaxem

    rng, v = np.random.default_rng(0), 20_000
    rows = [np.unique((rng.zipf(1.3, 60) - 1) % v) for _ in range(1_000)]
    rows.append(rng.choice(v, longest, replace=False))
    data = jaxem.documents([[(int(word), 1) for word in row] for row in rows], v)
    before, begin = peak(), time.perf_counter()
    jax.block_until_ready(jaxem.fit(jaxem.LDA(10), data, key=jax.random.key(0), max_steps=3, stop=jaxem.Stop(None)).params)
    size = data.words.dtype.itemsize + data.counts.dtype.itemsize
    return {
        "bytes": peak() - before,
        "seconds": time.perf_counter() - begin,
        "arrays": data.words.size * size,
        "entries": sum(map(len, rows)) * size,
    }


def child(*task: Any) -> dict[str, float]:
    """What a process of its own found."""
    done = subprocess.run([sys.executable, __file__, "--child", *map(str, task)], stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    number = lambda s: int(float(s))  # noqa: E731
    parser.add_argument("--rows", type=number, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--longest", type=number, nargs="*", default=[60, 300, 1_000])
    parser.add_argument("--components", type=number, default=256)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        kind, *rest = args.child
        found = documents(int(rest[0])) if kind == "documents" else answers(rest[0], rest[1], int(rest[2]), int(rest[3]))
        print(json.dumps(found))
        return

    import jax

    lines = [
        f"jax {jax.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[1]:.1f} over the last 5 minutes; K ="
        f" {args.components}, float64",
        "",
        "| answer | rows | size, MB | block by block, MB | seconds | at once, MB | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    calls = [("predict", "plain", "at once"), ("log_prob", "plain", "at once"), ("posterior", "plain", "at once")]
    for method, *hows in [*calls, ("posterior", "out")]:
        for n in args.rows:
            size = n * (args.components if method == "posterior" else 1) * 8
            runs = [child("answers", method, how, n, args.components) for how in hows]
            told = " | ".join(f"{run['bytes'] / 1e6:.0f} | {run['seconds']:.1f}" for run in runs)
            name = f"{method}, to a file" if hows == ["out"] else method
            lines.append(f"| {name} | {n:.0e} | {size / 1e6:.1f} | {told} |" + (" | |" if len(runs) == 1 else ""))
            print(lines[-1], flush=True)
    lines += ["", "| longest document | entries, MB | arrays, MB | fit, MB | seconds |", "|---|---|---|---|---|"]
    for longest in args.longest:
        run = child("documents", longest)
        sizes = " | ".join(f"{run[name] / 1e6:.1f}" for name in ("entries", "arrays", "bytes", "seconds"))
        lines.append(f"| {longest} | {sizes} |")
    print("\n".join(lines))
    if args.out:
        args.out.write_text("# Peak memory\n\n`" + " ".join(["python", *sys.argv]) + "`\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
