"""Fixtures of the suite: both precisions, and the small data sets."""

from __future__ import annotations

import gc
import os

import jax
import numpy as np
import pytest
from support import read

# Most of the suite's time is compilation. The programs are the same, only less optimised; their loops are written by
# XLA's older emitters, in less than half the time; and each process compiles in one thread, since there are as many as cores.
FLAGS = ("--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1")
if jax.__version_info__[:2] == (0, 10):  # a flag that XLA does not know ends the process
    os.environ["XLA_FLAGS"] = " ".join([*filter(None, [os.environ.get("XLA_FLAGS")]), *FLAGS])
jax.config.update("jax_disable_most_optimizations", True)
# Tracing makes many small objects: collecting them as often as usual takes a tenth of the time.
gc.freeze()
gc.set_threshold(20_000, 20, 50)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Compiled programs map thousands of memory regions, of which Linux allows 65 530 a process."""
    yield
    jax.clear_caches()


@pytest.fixture
def x64():
    """The test computes in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def optimised():
    """Programs as users run them: for tests that run for longer than they compile."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def same_numbers(request, monkeypatch):
    """A case of a module draws the same data from its `RNG` whichever ran before it."""
    monkeypatch.setattr(request.module, "RNG", np.random.default_rng(0))


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """The test runs in float32 without x64 and in float64 with it."""
    with jax.enable_x64(request.param == "float64"):
        yield np.dtype(request.param)


@pytest.fixture(scope="session")
def iris() -> np.ndarray:
    return read("iris.csv")


@pytest.fixture(scope="session")
def faithful() -> np.ndarray:
    return read("faithful.csv")


@pytest.fixture(scope="session")
def galaxies() -> np.ndarray:
    return read("galaxies.csv")
