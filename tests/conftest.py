"""Fixtures of the suite: both precisions, and the small data sets."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

import jaxem
from jaxem.check import LAWS, Report

# Nearly all of the suite's time is compilation. The programs are the same, only less optimised.
jax.config.update("jax_disable_most_optimizations", True)

DATA = Path(__file__).parent / "data"


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


#: Laws that most models skip, and why.
DERIVED = {
    "fisher": "the E-step is derived: the chain rule makes it so, and it would prove nothing",
    "e-step-matches-derived": "the E-step is derived",
    "local": "the model has no local",
    "device-count": "there is only one device",
}
ONE_FORM = {"forms-agree": "the model has one form"}
NO_COORDINATES = {"change-of-coordinates": "the model offers no coordinates"}
NO_POSTERIOR = {"posterior-rows-sum-to-one": "the model has no posterior"}
MOMENTS = {"posterior-rows-sum-to-one": "its posterior is not one array of probabilities"}
NO_SAMPLE = {name: "the model has no sample" for name in ("mean-score", "sampled-data-refit", "n-free-params")}
BY_OPTAX = {"m-step-stationary": "the model has no closed M-step"}
NO_CLAIM = {"m-step-stationary": "m_step does not claim the maximum"}


def assert_laws(model, data, skipped: dict[str, str], **given) -> Report:
    """Every law holds but those in `skipped`, for the reasons that stand there."""
    report = jaxem.check_model(model, data, **given)
    jax.clear_caches()  # a model makes hundreds of programs: see forget_programs
    assert report.skipped == skipped
    assert report.ran == [law.name for law in LAWS if law.name not in skipped]
    return report


def read(name: str) -> np.ndarray:
    """A numeric CSV of tests/data with a header line."""
    return np.loadtxt(DATA / name, delimiter=",", skiprows=1, ndmin=2)


@pytest.fixture(scope="session")
def iris() -> np.ndarray:
    return read("iris.csv")


@pytest.fixture(scope="session")
def faithful() -> np.ndarray:
    return read("faithful.csv")


@pytest.fixture(scope="session")
def galaxies() -> np.ndarray:
    return read("galaxies.csv")


def clusters(n: int, d: int, k: int, seed: int = 0, spread: float = 2.0) -> np.ndarray:
    """n rows from k Gaussian clusters with covariances of their own."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(k, d)) * spread
    mixing = rng.normal(size=(k, d, d)) / (2 * np.sqrt(d)) + np.eye(d)
    z = rng.integers(k, size=n)
    return means[z] + np.einsum("nde,ne->nd", mixing[z], rng.normal(size=(n, d)))
