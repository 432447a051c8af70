"""Every model passes every law, and the report says which laws ran and why others did not."""

import jax
import numpy as np
import pytest
from support import DERIVED, NO_CLAIM, NO_COORDINATES, ONE_VARIANT, assert_laws

import jaxem
from jaxem.check import LAWS

RNG = np.random.default_rng(0)
PLANE = np.concatenate([RNG.normal(size=(60, 2)) @ [[1, 0.5], [0, 0.7]], RNG.normal(size=(50, 2)) * 0.6 + [3, 2]])
COUNTS = np.concatenate([RNG.poisson(2, (60, 2)), RNG.poisson([7, 4], (51, 2))])
POSITIVE = np.concatenate([RNG.gamma(2, 1, 80), RNG.gamma(9, 1, 70)])
CODES = np.where(RNG.random((120, 1)) < 0.5, RNG.integers(0, 3, (120, 5)), RNG.choice(3, (120, 5), p=[0.7, 0.2, 0.1]))

SCALES = {"full": np.eye(2), "tied": np.eye(2), "diag": np.ones(2), "spherical": 1.0}

SINGLE = {"n-free-params": "a numerical rank needs float64"}


def gaussian(kind, prior):
    niw = jaxem.NormalInverseWishart(np.zeros(2), 0.1, 4.0, SCALES[kind]) if prior else None
    return jaxem.Mixture(2, jaxem.Gaussian(kind, prior=niw), jaxem.Dirichlet(2.0) if prior else None)


MODELS = {kind: (gaussian(kind, False), PLANE, {}) for kind in SCALES}
MODELS |= {f"{kind}-prior": (gaussian(kind, True), PLANE, {}) for kind in SCALES}
MODELS |= {
    "poisson": (jaxem.Mixture(2, jaxem.Poisson()), COUNTS, NO_COORDINATES),
    "poisson-prior": (
        jaxem.Mixture(2, jaxem.Poisson(jaxem.GammaPrior(2.0, 1.0)), jaxem.Dirichlet(2.0)), COUNTS, NO_COORDINATES),
    "gamma": (
        jaxem.Mixture(2, jaxem.Gamma()), POSITIVE,
        NO_COORDINATES | NO_CLAIM),
    "categorical": (jaxem.Mixture(2, jaxem.Categorical(3)), CODES, NO_COORDINATES),
    "categorical-prior": (
        jaxem.Mixture(2, jaxem.Categorical(3, jaxem.Dirichlet(2.0)), jaxem.Dirichlet(2.0)), CODES, NO_COORDINATES),
}  # fmt: skip


#: One case in the default suite, one of each kind with `-m laws`; what differs from another by little with `-m slow`.
DEFAULT = {("poisson-prior", "float64")}
LONGER = {(name, "float64") for name in ["full", "spherical-prior", "gamma", "categorical-prior"]} | {("diag", "float32")}


def marks(case):
    return () if case in DEFAULT else pytest.mark.laws if case in LONGER else pytest.mark.slow


GRID = [pytest.param(name, dtype, marks=marks((name, dtype))) for name in MODELS for dtype in ("float32", "float64")]


@pytest.mark.parametrize("name, dtype", GRID)
def test_laws(name, dtype):
    model, data, reasons = MODELS[name]
    with jax.enable_x64(dtype == "float64"):
        data = data.astype(dtype) if data.dtype.kind == "f" or "poisson" in name else data
        skipped = DERIVED | reasons | (SINGLE if dtype == "float32" else {})
        report = assert_laws(model, data, skipped | ({} if name.startswith((*SCALES, "poisson")) else ONE_VARIANT))
    assert report.dtype == dtype
    assert f"{len(report.ran)} laws hold" in str(report)


def test_weight_and_params_are_used():
    others = {law.name for law in LAWS} - {"coherence"}
    with jax.enable_x64(True):
        model = jaxem.Mixture(2, jaxem.Poisson())
        params = {"weights": np.array([0.5, 0.5]), "components": {"rate": np.array([[2.0, 2.0], [6.0, 4.0]])}}
        report = jaxem.check_model(model, COUNTS, params=params, weight=RNG.uniform(0, 2, len(COUNTS)), skip=others)
        assert report.ran == ["coherence"] and report.skipped["dtype"] == "left out by the caller"
        params["components"]["rate"][1, 1] = np.nan
        with pytest.raises(jaxem.LawError, match="finite-gradients"):
            jaxem.check_model(model, COUNTS, params=params)
        with pytest.raises(ValueError, match="weight must be finite and non-negative"):
            jaxem.check_model(model, COUNTS, weight=-np.ones(len(COUNTS)))


def test_params_of_the_wrong_shape():
    with pytest.raises(ValueError, match=r"params: components\.rate must have shape \(2, 2\); got \(3, 2\)"):
        params = {"weights": np.full(2, 0.5), "components": {"rate": np.ones((3, 2))}}
        jaxem.check_model(jaxem.Mixture(2, jaxem.Poisson()), COUNTS.astype(np.float32), params=params)


def test_unknown_law():
    with pytest.raises(ValueError, match="names of laws"):
        jaxem.check_model(jaxem.Mixture(2, jaxem.Poisson()), COUNTS, skip=["no-such-law"])
