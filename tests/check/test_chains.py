"""The laws on chains: each emission on a free chain, each kind of chain with two emissions, all pairs among the slow ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import BY_OPTAX, DERIVED, NO_CLAIM, NO_COORDINATES, NO_SAMPLE, ONE_VARIANT, assert_laws

import jaxem

pytestmark = [pytest.mark.laws, pytest.mark.usefixtures("same_numbers")]
RNG = np.random.default_rng(0)
LENGTHS = (30, 20, 25, 30) * 4
#: Three states that are visited often.
STATES = [np.arange(t) // 4 % 3 for t in LENGTHS]


def ragged(draw):
    """Sequences of `draw(states)`, where states are integers."""
    return jaxem.sequences([draw(z) for z in STATES])


def counts(z):
    return RNG.poisson(np.array([2.0, 6.0, 14.0])[z]).astype(float)


def plane(z):
    return np.array([[0.0, 0.0], [3.0, 1.0], [0.0, 4.0]])[z] + RNG.normal(size=(len(z), 2)) * np.array([[0.6, 1.0]])


def positive(z):
    return RNG.gamma(np.array([2.0, 6.0, 20.0])[z], 0.5)


def codes(z):
    return (RNG.random(len(z)) < np.array([0.2, 0.5, 0.8])[z]).astype(int) + (RNG.random(len(z)) < 0.3)


def responses(z):
    inputs = RNG.normal(size=(len(z), 1))
    return {
        "y": np.array([-3.0, 0.0, 3.0])[z] + np.array([1.0, -1.0, 2.0])[z] * inputs[:, 0] + RNG.normal(size=len(z)),
        "inputs": inputs,
    }


def wandering(z):
    return np.array([-3.0, 0.0, 3.0])[z] + RNG.normal(size=len(z))


def mixed(z):
    x = np.c_[plane(z), counts(z)]
    x[RNG.random(len(z)) < 0.1, :2] = np.nan
    return x


def normal_log_prob(params, x):
    z = (x - params["mean"]) / params["scale"]
    return -z * z / 2 - jnp.log(params["scale"]) - jnp.log(2 * jnp.pi) / 2


NORMAL = jaxem.density(
    normal_log_prob,
    init=lambda key: {"mean": jnp.array([-3.0, 0.0, 3.0]) + jax.random.normal(key, (3,)) / 9, "scale": jnp.ones(3)},
    constraints={"mean": jaxem.constraints.Real(), "scale": jaxem.constraints.Positive()},
)

PROBS = np.array([[0.7, 0.2, 0.1], [0.2, 0.6, 0.2], [0.1, 0.3, 0.6]])
EMISSIONS = {
    "poisson": (jaxem.Poisson(), counts),
    "gaussian-full": (jaxem.Gaussian(), plane),
    "gaussian-tied": (jaxem.Gaussian("tied"), plane),
    "gaussian-diag": (jaxem.Gaussian("diag"), plane),
    "gaussian-spherical": (jaxem.Gaussian("spherical"), plane),
    "gamma": (jaxem.Gamma(), positive),
    "categorical": (jaxem.Categorical(3), codes),
    "bernoulli": (jaxem.Bernoulli(), lambda z: (RNG.random((len(z), 3)) < np.array([[0.1], [0.5], [0.9]])[z]).astype(float)),
    "multinomial": (jaxem.Multinomial(n_trials=6), lambda z: RNG.multinomial(6, PROBS[z]).astype(float)),
    "negative-binomial": (jaxem.NegativeBinomial(), lambda z: counts(z) + RNG.poisson(RNG.gamma(0.5, 4.0, len(z)))),
    "student-t": (jaxem.StudentT(), lambda z: plane(z) * (1 + (RNG.random((len(z), 1)) < 0.1))),
    "von-mises": (jaxem.VonMises(), lambda z: RNG.vonmises(np.array([-2.0, 0.0, 2.0])[z], 4.0)),
    "mixture": (jaxem.FamilyMixture(2, jaxem.Poisson()), lambda z: counts(z) + 10 * (RNG.random(len(z)) < 0.4)),
    "product": (jaxem.Product((jaxem.Gaussian("diag"), jaxem.Poisson()), ((0, 1), (2,))), mixed),
    "regression": (jaxem.LinearRegression(), responses),
    "regression-shared": (jaxem.LinearRegression(True, False, True), responses),
    "autoregression": (jaxem.AutoRegression(order=2), wandering),
    "density": (NORMAL, wandering),
}
CHAINS = {
    "free": {},
    "fixed": {"initial": "fixed", "start": np.array([0.5, 0.3, 0.2])},
    "uniform": {"initial": "uniform"},
    "stationary": {"initial": "stationary"},
    "left-right": {"transition": jaxem.Transition(allowed=np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1]], bool))},
    "fixed-in-part": {"transition": jaxem.Transition(fixed=np.array([[0.7, np.nan, np.nan], [np.nan] * 3, [0.1, 0.2, 0.7]]))},
    "sticky": {"transition": jaxem.sticky(3, 5.0, 1.5), "initial_prior": jaxem.Dirichlet(2.0)},
}
WITH_COORDINATES = ("gaussian-full", "gaussian-tied", "gaussian-diag", "gaussian-spherical", "student-t")
WITH_VARIANTS = (
    *WITH_COORDINATES,
    "poisson",
    "mixture",
    "negative-binomial",
    "product",
    "regression",
    "regression-shared",
    "autoregression",
)


def check(emission, chain):
    family, draw = EMISSIONS[emission]
    model = jaxem.HMM(3, family, **CHAINS[chain])
    skipped = DERIVED | ({} if emission in WITH_COORDINATES else NO_COORDINATES)
    skipped |= {} if emission in WITH_VARIANTS else ONE_VARIANT
    if emission in ("gamma", "regression-shared", "density") or chain == "stationary":
        skipped |= NO_CLAIM
    if emission == "density":
        skipped |= NO_SAMPLE
    with jax.enable_x64(True):
        assert_laws(model, ragged(draw), skipped)


@pytest.mark.parametrize("emission", EMISSIONS)
def test_each_emission_on_a_free_chain(emission):
    check(emission, "free")


@pytest.mark.parametrize("chain", [name for name in CHAINS if name != "free"])
@pytest.mark.parametrize("emission", ["poisson", "gaussian-full"])
def test_each_kind_of_chain(emission, chain):
    check(emission, chain)


@pytest.mark.slow  # an hour
@pytest.mark.parametrize("chain", [name for name in CHAINS if name != "free"])
@pytest.mark.parametrize("emission", [name for name in EMISSIONS if name not in ("poisson", "gaussian-full")])
def test_every_pair(emission, chain):
    check(emission, chain)


def test_switching_autoregression():
    model = jaxem.MarkovAutoregression(n_regimes=2, order=1)
    with jax.enable_x64(True):
        assert_laws(model, ragged(wandering), DERIVED | NO_COORDINATES | BY_OPTAX)
