"""Two processes on this machine: the same results in both as in one, and an end within 30 s when one of them is lost."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxem

WORKER = Path(__file__).with_name("distributed_worker.py")


def start(task: str, *arguments: str) -> list[subprocess.Popen]:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = str(s.getsockname()[1])
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return [
        subprocess.Popen(
            [sys.executable, WORKER, port, str(i), task, arguments[i]],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in (0, 1)
    ]  # fmt: skip


@pytest.mark.published
def test_results_are_those_of_one_process(tmp_path, x64):
    names = [str(tmp_path / f"{i}.npz") for i in (0, 1)]
    for process in start("results", *names):
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, out + err
    first, second = (dict(np.load(name)) for name in names)
    assert "row" in str(second.pop("refusal")) and "process 1 refused its input" in str(first.pop("refusal"))
    for name in first:
        assert np.array_equal(first[name], second[name]), name

    rng = np.random.default_rng(0)
    x = rng.normal(size=(61, 2)) + np.arange(61)[:, None] % 2 * 4
    options = {"max_steps": 5, "stop": jaxem.Stop(loglik_rtol=None)}
    mixture = jaxem.fit(jaxem.GaussianMixture(2), x, init=jaxem.init.Quantiles(), **options)
    np.testing.assert_allclose(first["mean"], mixture.params["components"]["mean"], rtol=1e-9)
    np.testing.assert_allclose(first["loglik"], mixture.loglik, rtol=1e-12)

    words = np.random.default_rng(0).uniform(size=(9, 3)).round(1) * 10
    topics = jaxem.fit(jaxem.LDA(2), words, key=jax.random.key(0), n_restarts=3, **options)
    np.testing.assert_allclose(first["topics"], topics.params["topics"], rtol=1e-9)
    np.testing.assert_allclose(first["topic_logliks"], topics.restarts.loglik, rtol=1e-12)

    rng = np.random.default_rng(0)
    row = rng.uniform(size=(60, 3))
    images = jaxem.fit(jaxem.Superposition(), {"y": rng.poisson(row @ [1.0, 2.0, 9.0]), "row": row}, max_steps=5)
    np.testing.assert_allclose(first["rate"], images.params["rate"], rtol=1e-9)


@pytest.mark.parametrize(
    "blow, says", [(signal.SIGKILL, "one may be lost"), (signal.SIGSTOP, "another process has not answered for")]
)
def test_the_others_end_when_one_is_lost(blow, says):
    """Process 1 dies or freezes in mid-fit: process 0 leaves with a code and one line. Patience is shortened from 20 s to 2."""
    survivor, victim = start("endless", "2", "2")
    try:
        for _ in range(4):  # past compilation
            while "segment" not in (line := victim.stdout.readline()):
                assert line or victim.poll() is None, victim.stderr.read()
        victim.send_signal(blow)
        begun = time.monotonic()
        _, err = survivor.communicate(timeout=120)
        assert time.monotonic() - begun < 30
        assert survivor.returncode == jaxem.distributed.LOST
        assert len([line for line in err.splitlines() if line.startswith("jaxem: process 0 of 2 ends: ") and says in line]) == 1
    finally:
        for process in (survivor, victim):
            process.kill()
            process.communicate()


@pytest.mark.published
def test_a_restarted_job_goes_on_from_its_checkpoint(tmp_path):
    """One process of two is killed in mid-fit; the job started again ends with the bits of one that was left alone."""
    plain, broken = tmp_path / "plain", tmp_path / "broken"
    for folder in (plain, broken):
        folder.mkdir()
    for process in start("resumable", str(plain), str(plain)):
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, out + err

    (broken / "die").touch()
    survivor, victim = start("resumable", str(broken), str(broken))
    _, err = survivor.communicate(timeout=600)
    victim.communicate(timeout=60)
    assert victim.returncode == -signal.SIGKILL and survivor.returncode == jaxem.distributed.LOST, err
    assert list((broken / "saved").glob("checkpoint-*")) and not list(broken.glob("*.npz"))

    (broken / "die").unlink()
    (broken / "steps-0").unlink()
    for process in start("resumable", str(broken), str(broken)):
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, out + err
    assert int((broken / "steps-0").read_text().split()[0]) > 2, "it began afresh"
    for i in (0, 1):
        whole, resumed = (dict(np.load(folder / f"{i}.npz")) for folder in (plain, broken))
        for name in whole:
            assert np.array_equal(whole[name], resumed[name]), name
