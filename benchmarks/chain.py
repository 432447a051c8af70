"""jaxem against hmmlearn (its C++ 'scaling' recursions) and dynamax on hidden Markov models: one Baum-Welch iteration.

    python benchmarks/chain.py [--cases abcde] [--dtype float32,float64] [--repeats 5] [--dynamax] [--out FILE]

dynamax 1.0.3 imports beside these releases of jax with tfp-nightly in place of tensorflow-probability.
The same data, start and number of iterations, alternated in one process; a figure is the ratio of best times per
iteration and restart. Times are differences between the best of several short and of several long runs, so that neither
set-up nor compilation counts; the compile time and the log-likelihoods stand beside. hmmlearn computes in
float64 whatever the data. dynamax's M-step adds its default priors: its log-likelihood differs, its work does not.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import jaxem

#: name: (what, emission, K, D or V, sequences, steps of each, restarts)
CASES = {
    "a": ("Gaussian full", "gaussian", 5, 10, 1, 100_000, 1),
    "b": ("categorical", "categorical", 16, 64, 100, 1_000, 1),
    "c": ("Gaussian full", "gaussian", 64, 2, 1, 20_000, 1),
    "d": ("Gaussian full", "gaussian", 5, 10, 1, 10_000, 64),
    "e": ("Gaussian full", "gaussian", 5, 1, 5_000, 100, 1),
}


#: How many times as fast as hmmlearn a prototype of these recursions in plain JAX was.
TARGETS = {
    "float32": {"a": "5x", "b": "2x", "c": "14x", "d": "15x", "e": "5x"},
    "float64": {"a": "3x", "b": "1.2x", "c": "7x", "d": "11x"},
}


def make(emission: str, k: int, d: int, n: int, n_steps: int) -> tuple[np.ndarray, Callable[[int], dict[str, Any]]]:
    """(n, T, D) or (n, T) data that a chain emitted, and starts by seed."""
    rng = np.random.default_rng(0)
    transition = 0.9 * np.eye(k) + 0.1 * rng.dirichlet(np.ones(k), k)
    cumulative = transition.cumsum(1)
    states = np.empty((n, n_steps), int)
    states[:, 0] = rng.integers(k, size=n)
    for t in range(1, n_steps):
        states[:, t] = np.minimum((rng.random(n)[:, None] > cumulative[states[:, t - 1]]).sum(1), k - 1)
    if emission == "gaussian":
        means = 2 * rng.normal(size=(k, d))
        x = means[states] + rng.normal(size=(n, n_steps, d))
    else:
        probs = rng.dirichlet(np.full(d, 0.3), k)
        x = np.minimum((rng.random((n, n_steps, 1)) > probs.cumsum(1)[states]).sum(-1), d - 1)

    def start(seed: int) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        if emission == "gaussian":
            rows = x.reshape(-1, d)
            parts = {
                "mean": rows[rng.choice(len(rows), k, replace=False)],
                "covariance": np.broadcast_to(np.cov(rows.T).reshape(d, d), (k, d, d)).copy(),
            }
        else:
            parts = {"probs": rng.dirichlet(np.full(d, 5.0), k)}
        transition = 0.5 * np.eye(k) + 0.5 * rng.dirichlet(np.full(k, 5.0), k)
        return {"initial": np.full(k, 1 / k), "transition": transition, "emission": parts}

    return x, start


def hmmlearn_iterations(emission: str, x: np.ndarray, start: dict[str, Any], steps: int) -> tuple[float, float]:
    """Seconds for `steps` iterations of hmmlearn, and the log-likelihood that it reaches."""
    from hmmlearn import hmm

    k, d = len(start["initial"]), x.shape[-1] if emission == "gaussian" else 1
    options = {"implementation": "scaling", "n_iter": steps, "tol": -np.inf, "init_params": ""}
    if emission == "gaussian":
        model = hmm.GaussianHMM(k, "full", min_covar=0, means_weight=0, covars_prior=0, covars_weight=0, **options)
        model.means_, model.covars_ = start["emission"]["mean"], start["emission"]["covariance"]
    else:
        model = hmm.CategoricalHMM(k, n_features=start["emission"]["probs"].shape[1], **options)
        model.emissionprob_ = start["emission"]["probs"]
    model.startprob_, model.transmat_ = start["initial"], start["transition"]
    rows, lengths = x.reshape(-1, d), [x.shape[1]] * len(x)
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(rows, lengths)
    seconds = time.perf_counter() - begin
    return seconds, float(model.score(rows, lengths))


def dynamax_iterations(emission: str, x: np.ndarray, start: dict[str, Any], steps: int) -> tuple[float, float]:
    """Seconds for `steps` compiled EM iterations of dynamax, and the last log-likelihood that it reports."""
    import jax.numpy as jnp
    from dynamax.hidden_markov_model import CategoricalHMM, GaussianHMM

    k, parts = len(start["initial"]), start["emission"]
    known = {"initial_probs": jnp.asarray(start["initial"]), "transition_matrix": jnp.asarray(start["transition"])}
    if emission == "gaussian":
        model = GaussianHMM(k, x.shape[-1])
        given = {"emission_means": jnp.asarray(parts["mean"]), "emission_covariances": jnp.asarray(parts["covariance"])}
    else:
        model = CategoricalHMM(k, 1, parts["probs"].shape[1])
        given, x = {"emission_probs": jnp.asarray(parts["probs"])[:, None]}, x[..., None]
    params, props = model.initialize(jax.random.key(0), **known, **given)
    begin = time.perf_counter()
    _, logliks = model.fit_em(params, props, jnp.asarray(x), num_iters=steps, verbose=False)
    loglik = float(logliks[-1])  # waits: until then nothing need be done
    return time.perf_counter() - begin, loglik


class Timer:
    """Best seconds of a short and of a long run: their difference is free of set-up, and the best of several of noise."""

    def __init__(self, run: Callable[[int], tuple[float, float]], few: int, many: int) -> None:
        self.run, self.steps, self.best = run, (few, many), [float("inf")] * 2
        self.loglik = float("nan")

    def once(self) -> None:
        for i, steps in reversed(list(enumerate(self.steps))):
            seconds, self.loglik = self.run(steps)  # that of the short run stays
            self.best[i] = min(self.best[i], seconds)

    @property
    def per_step(self) -> float:
        return (self.best[1] - self.best[0]) / (self.steps[1] - self.steps[0])


def run_case(name: str, dtype: str, repeats: int, with_dynamax: bool, say: Callable[[str], None]) -> None:
    what, emission, k, d, n, n_steps, restarts = CASES[name]
    x, start = make(emission, k, d, n, n_steps)
    given = x.astype(dtype) if emission == "gaussian" else x
    starts = [start(seed) for seed in range(restarts)]
    stacked = jax.tree.map(lambda *leaf: np.stack(leaf).astype(dtype), *starts)
    model = jaxem.HMM(k, jaxem.Gaussian() if emission == "gaussian" else jaxem.Categorical(d))
    data = jaxem.Sequences(given, np.full(n, n_steps, np.int32))
    few, many = 2, 22 if restarts == 1 else 7

    def ours(steps: int) -> tuple[float, float]:
        begin = time.perf_counter()
        init = jaxem.init.Each(stacked)
        result = jaxem.fit(model, data, init=init, n_restarts=restarts, max_steps=steps, stop=jaxem.Stop(None))
        result.loglik.block_until_ready()
        return time.perf_counter() - begin, float(result.restarts.loglik[0])

    with jax.enable_x64(dtype == "float64"):
        first, _ = ours(few)
        mine = Timer(ours, few, many)
        theirs = Timer(lambda steps: hmmlearn_iterations(emission, x, starts[0], steps), few, 6)
        # It compiles anew in every call: enough iterations to stand out from that.
        long = few + 20 + 2_000_000 // (n * n_steps)
        other = Timer(lambda steps: dynamax_iterations(emission, given, starts[0], steps), few, long)
        for _ in range(repeats):
            for timer in (mine, theirs, *([other] if with_dynamax else [])):
                timer.once()
    ms = [1e3 * each for each in (mine.per_step / restarts, theirs.per_step, other.per_step)]
    beside = f" {ms[2]:8.1f} | {ms[2] / ms[0]:5.1f}x | {other.loglik:.1f} |" if with_dynamax else ""
    say(
        f"| {name} | {what} K={k} {'D' if emission == 'gaussian' else 'V'}={d}, {n} x {n_steps} | {dtype} | {restarts} |"
        f" {ms[1]:8.2f} | {ms[0]:8.3f} | {ms[1] / ms[0]:5.1f}x | {TARGETS[dtype].get(name, '-')} |"
        f" {first - mine.best[0]:5.1f} | {mine.loglik:.3f} | {theirs.loglik:.3f} |{beside}"
    )


def recursions(say: Callable[[str], None], k: int = 5, n_steps: int = 100_000) -> None:
    """Forward and backward recursions alone, one chain, float64 on both sides."""
    import jax.numpy as jnp
    from hmmlearn import _hmmc

    from jaxem.latents.forward_backward import smooth

    rng = np.random.default_rng(0)
    transition, start = rng.dirichlet(np.ones(k), k), np.full(k, 1 / k)
    scores = rng.normal(size=(n_steps, k))
    valid = jnp.ones((n_steps, 1), bool)
    with jax.enable_x64(True):
        args = [jnp.asarray(a) for a in (start, transition, scores[..., None])]
        run = jax.jit(lambda *a: smooth(*a, valid).visits)
        run(*args).block_until_ready()
        mine, theirs = [], []
        for _ in range(15):
            begin = time.perf_counter()
            run(*args).block_until_ready()
            mine.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            likelihood = np.exp(scores)
            _, forward, scaling = _hmmc.forward_scaling(start, transition, likelihood)
            backward = _hmmc.backward_scaling(start, transition, likelihood, scaling)
            posterior = forward * backward
            posterior /= posterior.sum(1, keepdims=True)
            theirs.append(time.perf_counter() - begin)
    say(
        f"\nForward, backward and posterior alone, K={k}, T={n_steps}, float64: hmmlearn {min(theirs) * 1e3:.1f} ms,"
        f" jaxem {min(mine) * 1e3:.1f} ms ({min(theirs) / min(mine):.1f}x), both from log-densities"
    )


def memory(say: Callable[[str], None], k: int = 5, n_steps: int = 1_000_000) -> None:
    """What one E-step holds besides its data, a single number each step, by XLA's account."""
    import jax.numpy as jnp

    params = {
        "initial": jnp.full(k, 1 / k),
        "transition": jnp.full((k, k), 1 / k),
        "emission": {"rate": jnp.arange(1.0, k + 1)},
    }
    held = []
    for segment in (n_steps, 1_000):
        model = jaxem.HMM(k, jaxem.Poisson(), segment=segment)

        def total(natural: Any, x: Any, model: jaxem.HMM = model) -> Any:
            return model.log_marginal(natural, jaxem.Sequences(x, jnp.array([n_steps])), jaxem.Rows()).sum()

        x = jax.ShapeDtypeStruct((1, n_steps), jnp.float32)
        step = jax.jit(jax.value_and_grad(total)).lower(model.natural(params), x).compile()
        held.append(step.memory_analysis().temp_size_in_bytes / 2**20)
    say(
        f"\nMemory of an E-step, K={k}, T={n_steps}, float32: {held[0]:.0f} MiB at once, {held[1]:.0f} MiB in segments of 1 000"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default="abcde")
    parser.add_argument("--dtype", default="float32,float64")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dynamax", action="store_true", help="dynamax beside, where it is installed")
    parser.add_argument("--out", default=None)
    args = parser.parse_args()
    lines: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    import hmmlearn

    say(f"jax {jax.__version__}, hmmlearn {hmmlearn.__version__}, {os.cpu_count()} cores\n")
    say("ms per Baum-Welch iteration and restart; compile in s; log-likelihoods after two iterations from one start\n")
    columns = ["", "data", "dtype", "R", "hmmlearn", "jaxem", "ratio", "wanted", "compile", "loglik jaxem"]
    columns += ["loglik hmmlearn", *(["dynamax", "ratio", "loglik dynamax"] if args.dynamax else [])]
    say("| " + " | ".join(columns) + " |")
    say("|---" * len(columns) + "|")
    for name in args.cases:
        for dtype in args.dtype.split(","):
            run_case(name, dtype, args.repeats, args.dynamax, say)
    recursions(say)
    memory(say)
    if args.out:
        with open(args.out, "w") as file:
            file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
