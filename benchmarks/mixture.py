"""jaxem against scikit-learn on Gaussian mixtures: same data, start, dtype and number of iterations.

    python benchmarks/mixture.py [--quick] [--dtype float32,float64] [--covariance full,diag] [--repeats 3] [--out FILE]

The two run alternately in one process; a figure is the ratio of their best times per iteration and
restart. scikit-learn's loop is its own E- and M-step without convergence checks; jaxem's time is the
difference between `fit` calls of two lengths. What a call costs beyond its iterations (checks,
standardization, the first E-step), compile time and the log-likelihoods of both stand beside.
"""

from __future__ import annotations

import argparse
import os
import resource
import threading
import time

import jax
import numpy as np

CASES = [(10_000, 2, 3), (100_000, 2, 5), (100_000, 10, 10), (50_000, 32, 16), (1_000_000, 8, 8)]


def make_data(n: int, d: int, k: int, seed: int = 0) -> np.ndarray:
    """Overlapping clusters with covariances of their own, none so narrow that the residual form is called for."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(k, d)) * 2
    mixing = 0.3 * rng.normal(size=(k, d, d)) / np.sqrt(d) + np.eye(d)
    z = rng.integers(k, size=n)
    noise = rng.normal(size=(n, d))
    x = np.empty((n, d))
    for j in range(k):
        x[z == j] = means[j] + noise[z == j] @ mixing[j].T
    return x


def start_from(x: np.ndarray, k: int, covariance: str, seed: int) -> dict:
    """Random rows as means, the data's covariance for every component."""
    rng = np.random.default_rng(seed)
    d = x.shape[1]
    spread = np.cov(x.T).reshape(d, d)
    full = covariance == "full"
    return {
        "weights": np.full(k, 1 / k),
        "components": {
            "mean": x[rng.choice(len(x), k, replace=False)].astype(np.float64),
            "covariance": np.broadcast_to(spread if full else np.diag(spread), (k, d, d) if full else (k, d)).copy(),
        },
    }


def sklearn_iterations(x: np.ndarray, start: dict, covariance: str, steps: int) -> tuple[float, float]:
    """Seconds for `steps` EM iterations of scikit-learn, and the log-likelihood reached."""
    from sklearn.mixture import GaussianMixture

    spread = start["components"]["covariance"]
    model = GaussianMixture(len(start["weights"]), covariance_type=covariance, reg_covar=0)
    model.weights_ = start["weights"].astype(x.dtype)
    model.means_ = start["components"]["mean"].astype(x.dtype)
    if covariance == "full":
        model.precisions_cholesky_ = np.linalg.cholesky(np.linalg.inv(spread)).astype(x.dtype)
    else:
        model.precisions_cholesky_ = (1 / np.sqrt(spread)).astype(x.dtype)
    begin = time.perf_counter()
    for _ in range(steps):
        _, log_responsibilities = model._e_step(x)
        model._m_step(x, log_responsibilities)
    seconds = time.perf_counter() - begin
    return seconds, float(model.score_samples(x).sum(dtype=np.float64))


class PeakMemory:
    """Peak resident bytes above the level at entry, sampled."""

    def __enter__(self):
        self.base, self.peak, self.running = _resident(), 0, True
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self):
        while self.running:
            self.peak = max(self.peak, _resident() - self.base)
            time.sleep(0.005)

    def __exit__(self, *_):
        self.running = False
        self.thread.join()


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def run_case(case, restarts: int, dtype: str, covariance: str, repeats: int, say) -> None:
    import jaxem

    n, d, k = case
    x = make_data(n, d, k).astype(dtype)
    starts = [start_from(x, k, covariance, seed) for seed in range(restarts)]
    steps = max(3, min(20, int(4e8 / (n * d * d * k * restarts) + 3)))
    stacked = jax.tree.map(lambda *leaf: np.stack(leaf).astype(dtype), *starts)
    model = jaxem.GaussianMixture(k, covariance)
    stop = jaxem.Stop(loglik_rtol=None)

    def ours(steps):
        begin = time.perf_counter()
        result = jaxem.fit(model, x, init=jaxem.init.Each(stacked), n_restarts=restarts, max_steps=steps, stop=stop)
        result.loglik.block_until_ready()
        return time.perf_counter() - begin, np.asarray(result.restarts.loglik)

    begin = time.perf_counter()
    with PeakMemory() as memory:
        ours(steps)
    first = time.perf_counter() - begin
    mine, calls, theirs = [], [], []
    for _ in range(repeats):
        call, loglik = ours(steps)
        longer, _ = ours(3 * steps)
        mine.append((longer - call) / (2 * steps * restarts))
        calls.append(call)
        seconds, reference = sklearn_iterations(x, starts[0], covariance, steps)
        theirs.append(seconds / steps)
    ratio = min(theirs) / min(mine)
    say(
        f"| {n:>7} x {d:>2}, K={k:>2} | {covariance:>4} | {dtype} | {restarts:>2} | {steps:>2} | {min(theirs) * 1e3:9.2f} |"
        f" {min(mine) * 1e3:8.3f} | {ratio:6.1f}x | {min(calls) - min(mine) * steps * restarts:6.3f} |"
        f" {first - min(calls):5.1f} | {memory.peak / 2**20:6.0f} | {loglik[0]:.2f} | {reference:.2f} |"
    )


def time_to_best(say, dtype: str = "float64") -> None:
    """Time to the best log-likelihood that scikit-learn finds with n_init=32."""
    from sklearn.mixture import GaussianMixture

    import jaxem

    x = make_data(20_000, 5, 8, seed=3).astype(dtype)
    begin = time.perf_counter()
    peer = GaussianMixture(8, n_init=32, random_state=0, init_params="k-means++", max_iter=2_000, tol=1e-6).fit(x)
    theirs = time.perf_counter() - begin
    best = peer.score(x) * len(x)
    model = jaxem.GaussianMixture(8)
    stop = jaxem.Stop(loglik_atol=1e-6 * len(x), loglik_rtol=None)
    say(f"\nTime to the best of scikit-learn's 32 starts (2e4 x 5, K=8, {dtype}): {theirs:.2f} s at {best:.2f}")
    for restarts, rounds in ((32, None), (32, jaxem.Rounds()), (16, jaxem.Rounds(first=10)), (8, jaxem.Rounds())):
        seconds, reached = [], []
        for seed in range(11):  # the first one compiles
            begin = time.perf_counter()
            result = jaxem.fit(model, x, key=jax.random.key(seed), n_restarts=restarts, rounds=rounds, stop=stop)
            reached.append(float(result.loglik) > best - 0.1)
            seconds.append(time.perf_counter() - begin)
        middle = float(np.median(seconds[1:]))
        kind = f"rounds of {rounds.first} steps and more" if rounds else "all finished"
        say(
            f"- jaxem, {restarts} starts, {kind}: {middle:.3f} s ({theirs / middle:.0f}x),"
            f" median of 10 keys, {sum(reached[1:])} of them there"
        )


def large(say) -> None:
    """Memory at (1e6, 32, 64), R = 8, beyond the data themselves."""
    import jaxem

    x = make_data(1_000_000, 32, 64).astype("float32")
    starts = [start_from(x[:10_000], 64, "full", seed) for seed in range(8)]
    stacked = jax.tree.map(lambda *leaf: np.stack(leaf).astype("float32"), *starts)
    with PeakMemory() as memory:
        result = jaxem.fit(jaxem.GaussianMixture(64), x, init=jaxem.init.Each(stacked), n_restarts=8, max_steps=2)
        result.loglik.block_until_ready()
    extra = memory.peak / 2**20
    say(f"\nMemory at 1e6 x 32, K=64, R=8, float32: {extra:.0f} MiB above the host data ({x.nbytes / 2**20:.0f} MiB)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three cases, one repeat")
    parser.add_argument("--dtype", default="float32,float64")
    parser.add_argument("--covariance", default="full,diag")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--restarts", default="1,32")
    parser.add_argument("--cases", default="", help="numbers of the cases, e.g. 1,2")
    parser.add_argument("--skip-extras", action="store_true")
    parser.add_argument("--out", default=None)
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    lines: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    import sklearn
    from threadpoolctl import threadpool_info

    threads = sorted({(p["internal_api"], p["num_threads"]) for p in threadpool_info()})
    say(f"jax {jax.__version__}, scikit-learn {sklearn.__version__}, {os.cpu_count()} cores, BLAS threads {threads}\n")
    say("ms per iteration and restart; set-up and compile in s; extra memory in MiB at the first call\n")
    columns = ["data", "cov", "dtype", "R", "steps", "sklearn", "jaxem", "ratio", "set-up", "compile", "memory"]
    columns += ["loglik jaxem", "loglik sklearn"]
    say("| " + " | ".join(columns) + " |")
    say("|---" * len(columns) + "|")
    cases = [CASES[int(i)] for i in args.cases.split(",")] if args.cases else CASES[1:4] if args.quick else CASES
    for case in cases:
        for covariance in args.covariance.split(","):
            for dtype in args.dtype.split(","):
                for restarts in map(int, args.restarts.split(",")):
                    run_case(case, restarts, dtype, covariance, 1 if args.quick else args.repeats, say)
    if not args.skip_extras:
        time_to_best(say)
        large(say)
    if args.out:
        with open(args.out, "w") as file:
            file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
