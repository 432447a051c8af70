"""What several tests use: small data, and the laws that models skip."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

import jaxem
from jaxem.check import LAWS, Report

DATA = Path(__file__).parent / "files"


#: Laws that most models skip, and why.
DERIVED = {
    "fisher": "the E-step is derived: the chain rule makes it so, and it would prove nothing",
    "e-step-matches-derived": "the E-step is derived",
    "local": "the model has no local",
    "device-count": "there is only one device",
}
ONE_VARIANT = {"variants-agree": "the model has one variant"}
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
    """A numeric CSV of tests/files with a header line."""
    return np.loadtxt(DATA / name, delimiter=",", skiprows=1, ndmin=2)


def clusters(n: int, d: int, k: int, seed: int = 0, spread: float = 2.0) -> np.ndarray:
    """n rows from k Gaussian clusters with covariances of their own."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(k, d)) * spread
    mixing = rng.normal(size=(k, d, d)) / (2 * np.sqrt(d)) + np.eye(d)
    z = rng.integers(k, size=n)
    return means[z] + np.einsum("nde,ne->nd", mixing[z], rng.normal(size=(n, d)))
