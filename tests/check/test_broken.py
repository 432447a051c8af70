"""Broken models: each is caught by the law named for its defect."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem import struct
from jaxem.check import LAWS, engine
from jaxem.check.case import derived_expectation
from jaxem.numerics.logs import safe_log

RNG = np.random.default_rng(1)
COUNTS = np.concatenate([RNG.poisson(2, 40), RNG.poisson(7, 41)]).astype(np.float64)
PLANE = np.concatenate([RNG.normal(size=(40, 2)), RNG.normal(size=(30, 2)) * 0.6 + [3, 2]])


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield
    jax.clear_caches()  # a model makes hundreds of programs: see forget_programs


def caught(model, law, data=COUNTS, only=False, **options):
    """Assert that `law` breaks: first of all laws, or by itself where an earlier one sees the same defect."""
    if only:
        options["skip"] = [other.name for other in LAWS if other.name != law]
    with pytest.raises(jaxem.LawError, match=law) as error:
        jaxem.check_model(model, data, **options)
    assert error.value.law == law


@struct
class Plain(jaxem.Poisson):
    """Poisson rates as they are, so that laws about `centered` do not see first what others are named for."""

    def centered(self, params):
        del params
        return self


def of(model_class, **options):
    return model_class(2, Plain(), **options)


@struct
class Own(jaxem.Mixture):
    """A mixture with a hand-written E-step, here the derived one."""

    def e_step(self, params, data, weight, rows):
        return derived_expectation.__wrapped__(self, params, data, weight, None)


@struct
class ScaledE(Own):
    def e_step(self, params, data, weight, rows):
        loglik, stats = Own.e_step(self, params, data, weight, rows)
        return loglik, jax.tree.map(lambda s: 1.01 * s, stats)


@struct
class ScaledLoglik(Own):
    def e_step(self, params, data, weight, rows):
        loglik, stats = Own.e_step(self, params, data, weight, rows)
        return 1.01 * loglik, stats


@struct
class ScaledM(jaxem.Mixture):
    def m_step(self, stats, params):
        new = jaxem.Mixture.m_step(self, stats, params)
        return {**new, "components": jax.tree.map(lambda x: 1.01 * x, new["components"])}


@struct
class ScaledWeights(jaxem.Mixture):
    def m_step(self, stats, params):
        new = jaxem.Mixture.m_step(self, stats, params)
        return {**new, "weights": 1.01 * new["weights"]}


@struct
class Backwards(jaxem.Mixture):
    """Claims no maximum, and steps away from it."""

    m_step_is_maximum = False

    def m_step(self, stats, params):
        new = jaxem.Mixture.m_step(self, stats, params)
        return jax.tree.map(lambda n, o: jnp.maximum(2 * o - n, o / 2), new, params)


@struct
class Unweighted(Own):
    def e_step(self, params, data, weight, rows):
        return Own.e_step(self, params, data, jnp.ones_like(weight), rows)


@struct
class Mean(Own):
    def e_step(self, params, data, weight, rows):
        return jax.tree.map(lambda x: x / len(weight), Own.e_step(self, params, data, weight, rows))


@struct
class Leaking(Own):
    """Weights as log-weights: a row of weight zero is 0 * -inf."""

    def e_step(self, params, data, weight, rows):
        loglik, stats = Own.e_step(self, params, data, weight, rows)
        nothing = (weight * jnp.log(weight) - weight * jnp.log(weight)).sum()
        return loglik + nothing, stats


@struct
class CountsRows(Own):
    """An absent row still adds to the log-likelihood."""

    def e_step(self, params, data, weight, rows):
        loglik, stats = Own.e_step(self, params, data, weight, rows)
        return loglik + (weight == 0).sum(), stats


@struct
class Clipped(Own):
    """Large weights are cut off."""

    def e_step(self, params, data, weight, rows):
        return Own.e_step(self, params, data, jnp.minimum(weight, 2.6), rows)


@struct
class Ordered(Own):
    """Rows are worth what their place in a long block is."""

    def e_step(self, params, data, weight, rows):
        loglik, stats = Own.e_step(self, params, data, weight, rows)
        return loglik + 1e-3 * (jnp.arange(len(weight)) * weight * (data - data.mean())).sum(), stats


@struct
class Blocked(Own):
    """Each block costs a little."""

    def e_step(self, params, data, weight, rows):
        loglik, stats = Own.e_step(self, params, data, weight, rows)
        return loglik + (0.1 if 30 < len(weight) < 80 else 0.0), stats


@struct
class Eager(Own):
    """Something else when it is not compiled."""

    def e_step(self, params, data, weight, rows):
        loglik, stats = Own.e_step(self, params, data, weight, rows)
        return loglik + (0.0 if isinstance(weight, jax.core.Tracer) else 0.1), stats


@struct
class NoNormalizer(Plain):
    def natural(self, params):
        return {**Plain.natural(self, params), "exposure": 0 * params["rate"]}


@struct
class OffByOne(jaxem.Mixture):
    def n_free_params(self, data):
        return jaxem.Mixture.n_free_params(self, data) + 1


@jax.custom_vjp
def hard_partition(scores):
    return jax.nn.logsumexp(scores, 0)


hard_partition.defvjp(
    lambda scores: (jax.nn.logsumexp(scores, 0), scores),
    lambda scores, g: (g * jax.nn.one_hot(scores.argmax(0), len(scores), axis=0, dtype=g.dtype),),
)


@struct
class Hard(jaxem.Mixture):
    """The log-likelihood of a mixture, its gradient by hard assignment."""

    def log_marginal(self, natural, data, rows):
        return hard_partition(self.local_scores(natural, data, rows))


@struct
class NotLinear(jaxem.Mixture):
    """A complete-data log-density that is concave in what `natural` returns."""

    def natural(self, params):
        eta = jaxem.Mixture.natural(self, params)
        return {**eta, "components": {**eta["components"], "exposure": jnp.sqrt(params["components"]["rate"])}}

    def pack(self, natural):
        return {**natural, "components": {**natural["components"], "exposure": -(natural["components"]["exposure"] ** 2)}}


@struct
class LaggingLocal(Own):
    """Remembers the parameters of the step before in `local`, and returns their log-likelihood."""

    def local(self, packed, data, previous):
        now = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(data), *x.shape)), packed)
        return {"now": now, "before": now if previous is None else previous["now"]}

    def e_step(self, params, data, weight, rows):
        _, stats = Own.e_step(self, params, data, weight, rows)
        before = jax.tree.map(lambda x: x[0], rows.local["before"])
        return weight @ self.log_marginal(before, data, rows), stats


@struct
class Soft(jaxem.Mixture):
    """The mixture as a variational bound whose per-datum parameters are its responsibilities."""

    is_bound = True
    sharpness: float = 1.0
    drift: float = 0.0

    def local(self, packed, data, previous):
        scores = self.local_scores(packed, data, jaxem.Rows())
        best = jax.nn.softmax(self.sharpness * scores, 0).T
        return best if previous is None else (1 - self.drift) * best + self.drift * previous[:, ::-1]

    def log_marginal(self, natural, data, rows):
        if rows.local is None:  # the initialiser's own use of it
            return jaxem.Mixture.log_marginal(self, natural, data, rows)
        r = rows.local.T
        scores = self.local_scores(natural, data, jaxem.Rows())
        return (r * (scores - jnp.where(r > 0, safe_log(r), 0))).sum(0)


@struct
class HalfPosterior(jaxem.Mixture):
    def posterior(self, params, data):
        return 0.5 * jaxem.Mixture.posterior(self, params, data)


@struct
class WideSingle(Plain):
    """Loses float32: a float64 constant promotes."""

    def scores(self, natural, data):
        return Plain.scores(self, natural, data) + jnp.zeros((), jnp.result_type(float))


@struct
class WrongFactor(jaxem.Gaussian):
    """Miscounts log |det| of its own origin."""

    def natural(self, params):
        eta = jaxem.Gaussian.natural(self, params)
        return eta if self.origin is None else {**eta, "log_det": eta["log_det"] + 0.01 * self.factor[:, 0, 0]}


@struct
class FixedPrior(jaxem.Gaussian):
    """A prior that stays in the data's own units."""

    def rescaled(self, affine):
        return self


@struct
class WrongSampler(jaxem.Mixture):
    """Draws that are no data."""

    def sample(self, key, params, n):
        return jnp.full((n,), jnp.nan, params["weights"].dtype)


@struct
class LostScale(jaxem.constraints.Positive):
    """exp undone by log2."""

    def to_free(self, x):
        return jnp.log2(x)


@struct
class BadChart(Plain):
    @property
    def constraints(self):
        return {"rate": LostScale()}


@struct
class NaNGradient(Plain):
    def natural(self, params):
        eta = Plain.natural(self, params)
        return {**eta, "log_rate": eta["log_rate"] + jnp.sqrt(0 * params["rate"])}


NAMED = {
    "E-step x 1.01": (of(ScaledE), "fisher"),
    "log-likelihood x 1.01": (of(ScaledLoglik), "e-step-matches-derived"),
    "M-step x 1.01": (of(ScaledM), "m-step-stationary"),
    "weights do not sum to one": (of(ScaledWeights), "m-step-feasible"),
    "M-step downhill": (of(Backwards), "q-rises"),
    "weights ignored": (of(Unweighted), "weights-honoured"),
    "a mean in place of a sum": (of(Mean), "additivity"),
    "NaN leaking from padding": (of(Leaking), "padding"),
    "large weights cut off": (of(Clipped), "weight-two-is-twice"),
    "not the same when compiled": (of(Eager), "jit-or-eager"),
    "a normaliser forgotten": (jaxem.Mixture(2, NoNormalizer()), "mean-score"),
    "n_free_params off by one": (of(OffByOne), "n-free-params"),
    "hard assignments": (of(Hard), "minorisation"),
    "not linear in natural": (of(NotLinear), "minorisation"),
    "log-likelihood lagging": (of(LaggingLocal), "coherence"),
    "local off its maximum": (of(Soft, sharpness=0.5), "local"),
    "local that falls": (of(Soft, drift=0.3), "local"),
    "posterior of a half": (of(HalfPosterior), "posterior-rows-sum-to-one"),
    "promotion to float64": (jaxem.Mixture(2, WideSingle()), "dtype"),
    "to_free is not the inverse": (jaxem.Mixture(2, BadChart()), "free-round-trip"),
    "NaN gradient": (jaxem.Mixture(2, NaNGradient()), "finite-gradients"),
}


@pytest.mark.published
@pytest.mark.parametrize("name", NAMED)
def test_caught_by_the_law_named_for_it(name):
    caught(*NAMED[name])


#: Laws that an earlier one shadows: alone they have teeth all the same.
ALONE = {
    "absent rows count": (of(CountsRows), "weight-zero-is-absent"),
    "order matters": (of(Ordered), "row-order"),
    "blocks cost": (of(Blocked), "block-size"),
    "log-likelihood x 1.01": (of(ScaledLoglik), "loglik-is-sum-of-log-prob"),
    "E-step x 1.01 by Louis": (of(ScaledE), "louis"),
    "hard assignments by the mean score": (of(Hard), "mean-score"),
    "not linear in natural": (of(NotLinear), "louis"),
    "M-step downhill": (of(Backwards), "objective-rises"),
    "draws that are not data": (of(WrongSampler), "sampled-data-refit"),
}


@pytest.mark.parametrize("name", ALONE)
def test_caught_alone(name):
    caught(*ALONE[name], only=True)


def test_forms():
    caught(jaxem.Mixture(2, WrongFactor()), "variants-agree", PLANE)


def test_coordinates():
    prior = jaxem.NormalInverseWishart(np.ones(2), 1.0, 4.0, 3 * np.eye(2))
    caught(jaxem.Mixture(2, FixedPrior(prior=prior)), "change-of-coordinates", PLANE)


@pytest.mark.published
def test_engine_that_lags(monkeypatch):
    """A fit whose log-likelihood is that of the step before, as in libraries that go E then M."""
    fit = engine.fitting.fit

    def lagging(*args, **options):
        result = fit(*args, **options)
        return dataclasses.replace(result, loglik=result.history[-2])

    monkeypatch.setattr(engine.fitting, "fit", lagging)
    caught(of(jaxem.Mixture), "coherence")


@pytest.mark.published
def test_sound_hand_written_e_step_and_bound():
    own = ["fisher", "e-step-matches-derived"]
    assert jaxem.check_model(of(Own), COUNTS, skip={law.name for law in LAWS} - set(own)).ran == own
    report = jaxem.check_model(of(Soft), COUNTS)
    assert "local" in report.ran
    assert report.skipped["mean-score"] == report.skipped["n-free-params"] == "log_marginal is a bound"


def test_indivisible_datum():
    @struct
    class Emission(jaxem.Model):
        """y ~ Poisson(A x), one picture."""

        constraints = jaxem.constraints.Positive()
        operator: jax.Array

        def natural(self, params):
            return {"log_x": jnp.log(params), "x": -params}

        def log_marginal(self, natural, data, rows):
            mean = jnp.log(self.operator @ jnp.exp(natural["log_x"]))
            return (data * mean).sum(-1) + self.operator.sum(0) @ natural["x"]

        def m_step(self, stats, params):
            return stats["log_x"] / stats["x"]

        def initialize(self, key, data, weight):
            return jnp.ones(self.operator.shape[1], data.dtype)

        def sample(self, key, params, n):
            mean = jnp.broadcast_to(self.operator @ params, (n, self.operator.shape[0]))
            return jax.random.poisson(key, mean).astype(params.dtype)

        def n_free_params(self, data):
            return self.operator.shape[1]

    operator = RNG.uniform(0.1, 2, (12, 3))
    data = RNG.poisson(operator @ [3.0, 1.0, 5.0]).astype(float)[None]
    report = jaxem.check_model(Emission(jnp.asarray(operator)), data)
    assert report.skipped["additivity"] == "the data are one indivisible datum (N = 1)"
    assert {"m-step-stationary", "minorisation", "mean-score", "louis", "n-free-params"} <= set(report.ran)


def test_a_spike_that_nothing_tells_of():
    @struct
    class Silent(jaxem.Gaussian):
        def at_floor(self, params):
            return jax.tree.map(lambda x: jnp.zeros(x.shape, bool), params)

    caught(jaxem.Mixture(2, Silent("diag")), "spike", PLANE, only=True)


def test_a_mask_that_is_looked_through():
    @struct
    class Looks(jaxem.Superposition):
        def log_marginal(self, natural, data, rows):
            data = {name: leaf for name, leaf in data.items() if name != "mask"}
            return jaxem.Superposition.log_marginal(self, natural, data, rows)

    matrix = RNG.uniform(0.1, 2, (12, 3))
    data = {"y": RNG.poisson(matrix @ [3.0, 1.0, 5.0])[None].astype(float), "mask": np.arange(12)[None] % 3 > 0}
    model = Looks(lambda operands, x: operands @ x, (3,), jnp.asarray(matrix))
    caught(model, "weight-zero-is-absent", data)
