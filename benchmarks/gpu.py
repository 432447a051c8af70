"""jaxem on an accelerator: ceilings of the device, EM iterations as shares of them, chains, and float32 against float64.

    python benchmarks/gpu.py [--small] [--out FILE] [--budget SECONDS]

Times are differences of two runs that differ in their number of iterations alone, so that neither
dispatch nor transfers nor initialisation count. `--small` runs the same code on sizes for a CPU. The exit
status is 1 where a check of the numerics failed; a case that does not fit in memory is reported and left out.
"""

from __future__ import annotations

import argparse
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from chain import make as chain_data
from mixture import CASES, make_data, start_from

import jaxem
from jaxem.latents import chain
from jaxem.numerics.linalg import PRECISION

NEVER = jaxem.Stop(loglik_rtol=None)
SMALL_CASES = [(2_000, 2, 3), (1_000, 4, 4)]
WIDE, SMALL_WIDE = (1_000_000, 128, 1_024), (2_000, 8, 16)
SHAPES = ("full", "tied", "diag", "spherical")


class Report:
    """Prints as it goes, keeps the lines for the file, and remembers what failed."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.failures = 0

    def say(self, line: str = "") -> None:
        print(line, flush=True)
        self.lines.append(line)

    def check(self, name: str, value: float, limit: float) -> None:
        passed = value < limit  # NaN fails
        self.failures += not passed
        self.say(f"| {name} | {value:.2e} | {limit:.0e} | {'ok' if passed else 'FAIL'} |")


def seconds(call: Callable[[int], Any], steps: int, repeats: int = 3) -> float:
    """Best time of `call(steps)`."""
    best = math.inf
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(call(steps))
        best = min(best, time.perf_counter() - begin)
    return best


def differenced(call: Callable[[int], Any], few: int, many: int, repeats: int = 3) -> float:
    """Seconds for each step beyond `few`; `call` is compiled."""
    jax.block_until_ready(call(few))
    return max(seconds(call, many, repeats) - seconds(call, few, repeats), 1e-9) / (many - few)


# --- ceilings --------------------------------------------------------------------------------
def copy_bandwidth(n_bytes: int) -> float:
    """GB/s read and written by an elementwise pass over device memory."""
    x = jnp.ones(n_bytes // 4, jnp.float32)
    # A loop of unknown length cannot be fused into one pass.
    run = jax.jit(lambda x, steps: jax.lax.fori_loop(0, steps, lambda _, x: x * 1.0001, x))
    return 2 * x.nbytes / differenced(lambda steps: run(x, steps), 5, 45) / 1e9


def matmul_rate(n: int, dtype: Any, precision: str) -> float:
    """TFLOP/s of the product of two (n, n) matrices."""
    x = jax.random.normal(jax.random.key(0), (n, n), jnp.float32).astype(dtype)
    y = x / jnp.sqrt(jnp.asarray(n, x.dtype))
    product = lambda _, x: jnp.matmul(x, y, precision=precision)  # noqa: E731
    run = jax.jit(lambda x, steps: jax.lax.fori_loop(0, steps, product, x))
    return 2 * n**3 / differenced(lambda steps: run(x, steps), 2, 12) / 1e12


def ceilings(report: Report, small: bool) -> dict[str, float]:
    found = {"copy": copy_bandwidth(2**24 if small else 2**31)}
    n = 256 if small else 8_192
    for dtype, precision in (
        ("float32", "default"), ("float32", "high"), ("float32", "highest"), ("bfloat16", "default"), ("float64", "highest"),
    ):  # fmt: skip
        found[f"{dtype} {precision}"] = matmul_rate(n, dtype, precision)
    report.say("## Ceilings\n")
    report.say("| what | rate |\n|---|---|")
    report.say(f"| device memory copy, read and write | {found['copy']:.0f} GB/s |")
    for name, rate in found.items():
        if name != "copy":
            report.say(f"| matmul ({n} x {n}), {name} | {rate:.2f} TFLOP/s |")
    report.say()
    return found


# --- iterations ------------------------------------------------------------------------------
def n_features(d: int, covariance: str) -> int:
    """F of the product form: 1, x and the quadratic features."""
    return 1 + d + {"full": d * (d + 1) // 2, "spherical": 1}[covariance]


def starts(x: np.ndarray, k: int, covariance: str, n_restarts: int, dtype: str) -> dict:
    """Leaves (R, ...). The covariance comes from the first rows, or 1,024 of them would take minutes."""
    few = x[: max(10_000, k)]
    made = [start_from(few, k, "full" if covariance == "full" else "diag", seed) for seed in range(n_restarts)]
    if covariance == "spherical":
        for start in made:
            start["components"]["covariance"] = start["components"]["covariance"].mean(-1)
    return jax.tree.map(lambda *leaf: np.stack(leaf).astype(dtype), *made)


def iteration(x: np.ndarray, k: int, covariance: str, n_restarts: int, dtype: str) -> tuple[float, float, int]:
    """Seconds of one iteration of all restarts, seconds of the first call, and how many restarts ended before the last step."""
    model = jaxem.GaussianMixture(k, covariance)
    data = jnp.asarray(x, dtype)
    init = jax.tree.map(jnp.asarray, starts(x, k, covariance, n_restarts, dtype))

    # Under jit nothing is checked or transformed on the host: what is left is the device's work.
    @jax.jit
    def run(data, init, steps):
        each = jaxem.init.Each(init)
        result = jaxem.fit(model, data, init=each, n_restarts=n_restarts, max_steps=steps, stop=NEVER)
        return result.loglik, result.restarts.n_steps

    call = lambda steps: run(data, init, steps)  # noqa: E731
    begin = time.perf_counter()
    jax.block_until_ready(call(2))
    first = time.perf_counter() - begin
    # Enough steps for a fifth of a second, few enough that float32 restarts have not yet come to rest.
    once = differenced(call, 2, 6, 1)
    many = 2 + int(np.clip(0.2 / once, 4, 40))
    each = differenced(call, 2, many)
    early = int((np.asarray(call(many)[1]) < many).sum())
    return each, first, early


def table(report: Report, ceiling: dict[str, float], small: bool, deadline: float) -> None:
    cases, wide = (SMALL_CASES, SMALL_WIDE) if small else (CASES, WIDE)
    more = (4, 16) if small else (32, 1_024)
    runs = [(case, "full", 1, "float32") for case in cases] + [(wide, "spherical", 1, "float32")]
    runs += [(case, "full", r, "float32") for r in more for case in cases]
    runs += [(case, "full", 1, "float64") for case in cases]
    report.say("## Iterations\n")
    report.say(
        "Flops are those of the product form, 4 K R F N, against the matmul at 'highest' of the same dtype; bytes are one"
    )
    report.say("reading of the data against the copy. `early`: restarts that ended before the last step timed.\n")
    report.say(
        "| N x D, K | cov | dtype | R | ms per iteration and restart | TFLOP/s | of matmul | of copy | first call, s | early |"
    )
    report.say("|---|---|---|---|---|---|---|---|---|---|")
    held: dict[tuple, np.ndarray] = {}
    for case, covariance, n_restarts, dtype in runs:
        n, d, k = case
        head = f"| {n} x {d}, {k} | {covariance} | {dtype} | {n_restarts} |"
        if time.perf_counter() > deadline:
            report.say(f"{head} not run: out of time | | | | | |")
            continue
        try:
            if case == wide:
                x = make_data(*case)  # a gigabyte: not kept
            else:
                x = held[case] = held[case] if case in held else make_data(*case)
            each, first, early = iteration(x, k, covariance, n_restarts, dtype)
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:160].replace("|", "/")
            report.failures += not (isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in reason or "memory" in reason)
            report.say(f"{head} not run: {reason} | | | | | |")
            continue
        rate = 4 * k * n_restarts * n_features(d, covariance) * n / each / 1e12
        matmul = rate / ceiling[f"{dtype} highest"]
        copy = n * d * np.dtype(dtype).itemsize / each / 1e9 / ceiling["copy"]
        report.say(f"{head} {1e3 * each / n_restarts:.4f} | {rate:.2f} | {matmul:.0%} | {copy:.1%} | {first:.1f} | {early} |")
    report.say()


# --- chains ----------------------------------------------------------------------------------
#: what, emission, K, D or V, sequences, steps of each, restarts
CHAINS = [
    ("one long chain, blocked in time", "gaussian", 5, 10, 1, 1_000_000, 1),
    ("many sequences", "categorical", 16, 64, 4_096, 1_000, 1),
    ("restarts", "gaussian", 5, 10, 1, 10_000, 1_024),
]


def chains(report: Report, small: bool, deadline: float) -> None:
    """Baum-Welch iterations; one long chain at several numbers of blocks in time, whose log-likelihoods must agree."""
    report.say("## Chains\n")
    report.say("Steps/s: of all sequences and restarts. Where the number of blocks is a dash jaxem chooses it.\n")
    report.say("| | sequences x steps, K | R | blocks | ms per iteration | steps/s | first call, s | loglik |")
    report.say("|---|---|---|---|---|---|---|---|")
    found: list[float] = []
    for what, emission, k, d, n, n_steps, n_restarts in CHAINS:
        if small:
            n, n_steps, n_restarts = min(n, 32), min(n_steps // 10, 500), min(n_restarts, 8)
        x, start = chain_data(emission, k, d, n, n_steps)
        init = jax.tree.map(lambda *leaf: np.stack(leaf).astype(np.float32), *(start(seed) for seed in range(n_restarts)))
        model = jaxem.HMM(k, jaxem.Gaussian() if emission == "gaussian" else jaxem.Categorical(d))
        data = jaxem.Sequences(jnp.asarray(x, jnp.float32 if emission == "gaussian" else jnp.int32), jnp.full(n, n_steps))
        long = n == n_restarts == 1
        for blocks in (None, 16, 64, 4_096) if long else (None,):
            head = f"| {what} | {n} x {n_steps}, {k} | {n_restarts} | {blocks or '-'} |"
            if time.perf_counter() > deadline:
                report.say(f"{head} not run: out of time | | | |")
                continue
            try:
                with blocks_in_time(blocks):
                    each, first, loglik = chain_iteration(model, data, init, n_restarts)
            except jax.errors.JaxRuntimeError as error:
                report.failures += "RESOURCE_EXHAUSTED" not in str(error)
                report.say(f"{head} not run: {str(error).splitlines()[0][:120].replace('|', '/')} | | | |")
                continue
            found += [loglik] * long
            report.say(f"{head} {1e3 * each:.2f} | {n * n_steps * n_restarts / each:.2e} | {first:.1f} | {loglik:.2f} |")
    report.say("\n| what | found | limit | |\n|---|---|---|---|")
    report.check(
        "log-likelihood of the long chain across blocks, relative", np.ptp(found) / abs(found[0]) if found else 0, 1e-6
    )
    report.say()


@contextmanager
def blocks_in_time(n_blocks: int | None) -> Iterator[None]:
    """Chains are cut in so many blocks; None: as they would be."""
    chosen = chain._default_blocks
    jax.clear_caches()
    if n_blocks is not None:
        chain._default_blocks = lambda n_steps: min(n_blocks, n_steps)
    try:
        yield
    finally:
        chain._default_blocks = chosen


def chain_iteration(model: jaxem.HMM, data: Any, init: Any, n_restarts: int) -> tuple[float, float, float]:
    """Seconds of one iteration, seconds of the first call, and the first restart's log-likelihood after two steps."""

    @jax.jit
    def run(data, init, steps):
        result = jaxem.fit(model, data, init=jaxem.init.Each(init), n_restarts=n_restarts, max_steps=steps, stop=NEVER)
        return result.restarts.loglik

    begin = time.perf_counter()
    loglik = float(run(data, init, 2)[0])
    first = time.perf_counter() - begin
    return differenced(lambda steps: run(data, init, steps), 2, 7), first, loglik


# --- numerics --------------------------------------------------------------------------------
def both(x: np.ndarray, start: dict, covariance: str, steps: int) -> tuple[Any, Any, float]:
    """Fits of the same float32 values in float32 and float64, and the largest gap of a row's log-density."""
    model = jaxem.GaussianMixture(len(start["weights"]), covariance)
    x, start = np.float32(x), jax.tree.map(np.float32, start)
    single = jaxem.fit(model, x, init=start, max_steps=steps, stop=NEVER)
    doubled = jax.tree.map(np.float64, start)
    double = jaxem.fit(model, np.float64(x), init=doubled, max_steps=steps, stop=NEVER)
    rows = jax.jit(model.log_prob)
    gap = np.asarray(rows(single.params, x), np.float64) - np.asarray(rows(double.params, np.float64(x)))
    return single, double, float(np.abs(gap).max())


def covariance_start(covariance: str, k: int, d: int, variance: float) -> np.ndarray:
    shape = {"full": np.eye(d) * np.ones((k, 1, 1)), "tied": np.eye(d), "diag": np.ones((k, d)), "spherical": np.ones(k)}
    return shape[covariance] * variance


def dot_error(precision: Any) -> float:
    """Relative error of dots of 4,096 terms whose factors TF32 and bfloat16 would all round down to one."""
    rng = np.random.default_rng(0)
    a, b = (np.float32(1 + rng.uniform(0.5, 1.5, shape) / 4_096) for shape in ((256, 4_096), (4_096, 256)))
    exact = a.astype(np.float64) @ b.astype(np.float64)
    got = np.asarray(jnp.matmul(jnp.asarray(a), jnp.asarray(b), precision=precision), np.float64)
    return float(np.abs(got / exact - 1).max())


def numerics(report: Report, small: bool) -> None:
    """What tests/fitting/test_coordinates.py asks, on this device."""
    report.say("## Numerics: float32 against float64\n")
    report.say("| what | found | limit | |\n|---|---|---|---|")
    report.check("dot of 4,096 terms, as jaxem multiplies (TF32: 5e-04)", dot_error(PRECISION), 1e-5)
    report.say(f"| the same at JAX's default precision, for comparison | {dot_error(None):.2e} | | |")
    n = 500 if small else 4_000
    # Both checks at one size share what they compile.
    sizes = [(2, 3, SHAPES)] if small else [(10, 10, SHAPES), (32, 16, ("full",))]
    rng = np.random.default_rng(0)
    for d, k, shapes in sizes:
        means, z, noise = rng.normal(size=(k, d)), rng.integers(k, size=n), rng.normal(size=(n, d))
        mixing = 0.3 * rng.normal(size=(k, d, d)) / np.sqrt(d) + np.eye(d)
        noise = np.einsum("nde,ne->nd", mixing[z], noise)
        wide = 2 * means[z] + noise
        offset = (wide - wide.mean(0)) / wide.std(0) + 1e4
        narrow = means[z] + 1e-3 * noise
        for covariance in shapes:
            size = f"{covariance}, {n} x {d}, K={k}"
            parts = {"mean": offset[:k], "covariance": covariance_start(covariance, k, d, 1.0)}
            single, double, _ = both(offset, {"weights": np.full(k, 1 / k), "components": parts}, covariance, 10)
            gap = abs(float(single.loglik) - float(double.loglik)) / n
            report.check(f"offset 1e4, log-likelihood a row: {size}", gap, 1e-3)
            parts = {"mean": means, "covariance": covariance_start(covariance, k, d, 1e-6)}
            single, double, gap = both(narrow, {"weights": np.full(k, 1 / k), "components": parts}, covariance, 5)
            report.check(f"clusters of width 1e-3, largest gap of a row: {size}", gap, 1e-2)
            got, wanted = (np.asarray(r.params["components"]["covariance"], np.float64) for r in (single, double))
            worst = float(np.abs(got - wanted).max() / np.abs(wanted).max())
            report.check(f"clusters of width 1e-3, covariances: {size}", worst, 1e-2)
    report.say()


def driver() -> str:
    """Version of the NVIDIA driver, or a dash."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.SubprocessError, IndexError):
        return "-"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="the same code on tiny sizes, for a CPU")
    parser.add_argument("--out", default=None, help="default: benchmarks/results/gpu-<device>.md; with --small none")
    parser.add_argument("--budget", type=float, default=320, help="seconds after which no further iteration case is begun")
    args = parser.parse_args()
    begin = time.perf_counter()
    jax.config.update("jax_enable_x64", True)
    device = jax.devices()[0]
    report = Report()
    report.say(f"# {device.device_kind} ({device.platform})\n")
    report.say(f"driver {driver()}, jax {jax.__version__}, jaxem {jaxem.__version__}{', small sizes' * args.small}\n")
    ceiling = ceilings(report, args.small)
    table(report, ceiling, args.small, begin + args.budget)
    chains(report, args.small, begin + args.budget + 60)
    numerics(report, args.small)
    verdict = f"FAIL: {report.failures}" if report.failures else "all checks passed"
    report.say(f"{verdict}; {time.perf_counter() - begin:.0f} s in all")
    out = args.out
    if out is None and not args.small:
        name = re.sub(r"[^a-z0-9]+", "-", device.device_kind.lower()).strip("-")
        out = str(Path(__file__).parent / "results" / f"gpu-{name}.md")
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_text("\n".join(report.lines) + "\n")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
