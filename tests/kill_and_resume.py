"""Kill a fit with SIGKILL at moments inside the run, resume it, and compare with one that ran through, to the last bit.

python tests/kill_and_resume.py [--moments 20] [--cases em,rounds,squarem,anderson,gem]
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time

import jax
import numpy as np
import optax

import jaxem
from jaxem.storage import archive

STEPS = 200
ADAM = optax.adam(1e-2)
CASES = {
    "em": {},
    "rounds": {"rounds": jaxem.Rounds(20)},
    "squarem": {"algorithm": jaxem.Squarem()},
    "anderson": {"algorithm": jaxem.Anderson()},
    "gem": {"algorithm": jaxem.GEM(ADAM, inner_steps=2)},
}


def fit(case: str, directory: str | None, n: int = 5_000, steps: int = STEPS, callback=None) -> jaxem.Result:
    """Overlapping counts, 20 restarts for 16 slots, and far too few steps to converge."""
    rng = np.random.default_rng(0)
    x = rng.poisson(np.array([3.0, 5.0, 8.0])[rng.integers(3, size=n)])
    checkpoint = None if directory is None else jaxem.Checkpoint(directory, every_seconds=0)
    return jaxem.fit(
        jaxem.Mixture(3, jaxem.Poisson()), x, key=jax.random.key(0), n_restarts=20, max_steps=steps,
        stop=jaxem.Stop(None), checkpoint=checkpoint, callback=callback, **CASES[case],
    )  # fmt: skip


def doomed(case: str, directory: str, seconds: float) -> None:
    """Run in a process of its own: it dies so long after the first look at the fit."""

    def die() -> None:
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    timer = threading.Thread(target=die, daemon=True)
    fit(case, directory, callback=lambda _: timer.start() if timer.ident is None else None)


def same(left: jaxem.Result, right: jaxem.Result) -> bool:
    """Equal in every bit of every leaf."""
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def saved(directory: str) -> float | None:
    """The share of all steps that the last checkpoint holds; None where there is none."""
    paths = jaxem.Checkpoint(directory).paths()
    if not paths:
        return None
    restarts = archive.read(paths[-1], "checkpoint")[1]
    running = restarts["restarts.status"] == jaxem.Status.RUNNING
    # Restarts that lost a race stand where they lost it.
    return 1.0 if not running[restarts["order"]].any() else float(restarts["restarts.n_steps"].clip(0).mean() / STEPS)


def killed_and_resumed(case: str, share: float, whole: jaxem.Result, seconds: float) -> tuple[bool, float]:
    """Whether the resumed fit equals `whole`, and the share of the steps that was saved when it was killed.

    Args:
        case: of CASES.
        share: of the run after which it is killed.
        whole: the fit that ran through.
        seconds: that it took.
    """
    for _ in range(10):
        with tempfile.TemporaryDirectory() as directory:
            command = [sys.executable, __file__, "--doomed", case, directory, str(seconds * share)]
            same_compiler = {"JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(jax.config.read("jax_disable_most_optimizations")))}
            done = subprocess.run(command, env={**os.environ, "JAX_ENABLE_X64": "1", **same_compiler}, timeout=600)
            held = saved(directory)
            # Machines are not equally fast at all times: again, until the process has died strictly inside the run.
            if done.returncode == -signal.SIGKILL and held is not None and 0 < held < 1:
                return same(fit(case, directory), whole), held
            share *= 2 if held is None else 0.5
    raise RuntimeError("the fit was never killed inside the run")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--doomed", nargs=3, metavar=("CASE", "DIRECTORY", "SECONDS"))
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    if args.doomed:
        doomed(args.doomed[0], args.doomed[1], float(args.doomed[2]))
        return
    cases, failed = args.cases.split(","), 0
    wholes = {}
    for case in cases:
        fit(case, None)
        with tempfile.TemporaryDirectory() as directory:
            begun = time.perf_counter()
            wholes[case] = fit(case, directory), time.perf_counter() - begun
        moving = np.abs(np.diff(np.asarray(wholes[case][0].history)[-2:]))[0]
        print(f"{case}: {wholes[case][1]:.2f} s, still rising by {moving:.1e} in its last step", flush=True)
    for i, share in enumerate(np.random.default_rng(1).uniform(0.05, 0.8, args.moments)):
        case = cases[i % len(cases)]
        equal, held = killed_and_resumed(case, share, *wholes[case])
        failed += not equal
        print(
            f"{case}: killed with {held:.1%} of its steps saved, resumed: {'same bits' if equal else 'DIFFERENT'}", flush=True
        )
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
