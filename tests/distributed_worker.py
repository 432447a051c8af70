"""One of two processes of `test_distributed.py`: fits, says what it got, then fits for ever.

Arguments: port, process, what to do: "results" writes them to a file named next; "endless" takes seconds of patience;
"resumable" saves in the directory named next, what it found too, and dies at step 30 where the file `die` is there.
"""

import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np

import jaxem
from jaxem.fitting import segments

port, me, task, argument = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_disable_most_optimizations", True)
jaxem.distributed.initialize(f"localhost:{port}", 2, me)
mesh = jax.make_mesh((2,), ("data",))


def counts(n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    row = rng.uniform(size=(n, 3))
    return {"y": rng.poisson(row @ [1.0, 2.0, 9.0]), "row": row}


def own(data):
    """Rows 0 .. 24 are process 0's, the others process 1's."""
    return jax.tree.map(lambda x: x[:25] if me == 0 else x[25:], data)


if task == "results":
    found = {}
    x = np.random.default_rng(0).normal(size=(61, 2)) + np.arange(61)[:, None] % 2 * 4
    options = {"max_steps": 5, "mesh": mesh, "stop": jaxem.Stop(loglik_rtol=None)}
    mixture = jaxem.fit(jaxem.GaussianMixture(2), own(x), init=jaxem.init.Quantiles(), **options)
    found |= {"mean": mixture.params["components"]["mean"], "loglik": mixture.loglik}
    # Restarts along processes: each holds all rows.
    by_restarts = jax.make_mesh((2, 1), ("restarts", "data"))
    topics = jaxem.fit(
        jaxem.LDA(2), counts(9)["row"].round(1) * 10, key=jax.random.key(0), n_restarts=3, **options | {"mesh": by_restarts}
    )
    found |= {"topics": topics.params["topics"], "topic_logliks": topics.restarts.loglik}
    arrays = jaxem.distributed.from_local_rows(jax.tree.map(lambda x: x[30 * me : 30 * me + 30], counts(60)), mesh)
    images = jaxem.fit(jaxem.Superposition(), arrays, max_steps=5)
    found |= {"rate": images.params["rate"]}
    spoilt = own(x)
    spoilt[3] = np.nan if me == 1 else spoilt[3]
    try:
        jaxem.fit(jaxem.GaussianMixture(2), spoilt, init=jaxem.init.Quantiles(), **options)
    except (ValueError, RuntimeError) as error:
        found |= {"refusal": str(error)}
    np.savez(argument, **found)
elif task == "resumable":
    folder = Path(argument)

    def look(snapshot):
        with (folder / f"steps-{me}").open("a") as file:
            print(snapshot.n_steps.max(), file=file)
        if me == 1 and (folder / "die").exists() and snapshot.n_steps.max() >= 30:
            os.kill(os.getpid(), signal.SIGKILL)

    x = np.random.default_rng(0).normal(size=(50, 2)) + np.arange(50)[:, None] % 2
    found = jaxem.fit(
        jaxem.GaussianMixture(2), own(x), key=jax.random.key(0), n_restarts=3, mesh=mesh, max_steps=2000, callback=look,
        stop=jaxem.Stop(loglik_rtol=None), checkpoint=jaxem.Checkpoint(folder / "saved", every_seconds=0),
    )  # fmt: skip
    np.savez(folder / f"{me}.npz", mean=found.params["components"]["mean"], loglik=found.restarts.loglik)
else:
    jaxem.distributed.PATIENCE = float(argument)
    compiled = segments.run_segment

    def noted(*arguments):
        print("segment", flush=True)
        return compiled(*arguments)

    segments.run_segment = noted
    jaxem.fit(jaxem.Superposition(), own(counts(50)), max_steps=2_000_000_000, mesh=mesh, stop=jaxem.Stop(loglik_rtol=None))
