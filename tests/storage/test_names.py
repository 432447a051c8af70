"""Classes in files: every name that was ever written finds its class, wherever that stands today."""

import dataclasses

import jax.numpy as jnp
import pytest

import jaxem
from jaxem import Checkpoint
from jaxem.pytree import STRUCTS
from jaxem.storage import names
from jaxem.storage.fingerprint import fingerprint
from jaxem.storage.names import class_of, first_path, name_of

#: Never to be shortened: what files of jaxem 0.1.0 may hold, as it stood before its first move. What a running fit
#: keeps to itself is named in no file.
FROZEN = """
jaxem.affine: Affine
jaxem.alignment: Alignment
jaxem.blocks: Blocks
jaxem.constraints: Fixed NonNegative PartReal PartSimplex Partly Positive Real SPD Simplex UnitInterval
jaxem.documents: Documents
jaxem.engine.accelerate: QuasiNewton Squarem
jaxem.engine.algorithm: ECM EM GEM HardEM
jaxem.engine.anderson: Anderson
jaxem.engine.conjugate_gradient: ConjugateGradient
jaxem.engine.fit: _Options
jaxem.engine.ordered_subsets: OrderedSubsets
jaxem.engine.regularizer: L1 L2 Regularizer
jaxem.engine.restarts: Rounds
jaxem.engine.stop: Stop
jaxem.evaluate.bootstrap: Bootstrap
jaxem.evaluate.cross_validation: CrossValidation
jaxem.evaluate.em_rate: MissingInformation
jaxem.evaluate.information: Information
jaxem.evaluate.local_fdr: TwoGroups
jaxem.evaluate.unlabelled: UnlabelledWeight
jaxem.families.bernoulli: Bernoulli
jaxem.families.categorical: Categorical
jaxem.families.density: Density
jaxem.families.family_mixture: FamilyMixture
jaxem.families.gamma: Gamma
jaxem.families.gaussian: Gaussian
jaxem.families.missing: Observed
jaxem.families.multinomial: Multinomial
jaxem.families.negative_binomial: NegativeBinomial
jaxem.families.poisson: Poisson
jaxem.families.product: Product
jaxem.families.regression: AutoRegression LinearRegression
jaxem.families.student_t: StudentT
jaxem.families.von_mises: VonMises
jaxem.init: Each KMeans KMeansPlusPlus Labels Quantiles RandomResponsibilities RandomRows
jaxem.latents.gaussian_chain: GaussianChain
jaxem.models.ancestry: Ancestry
jaxem.models.censored: CensoredRegression
jaxem.models.chain_inference: Chain Forecast
jaxem.models.factor_analysis: FactorAnalysis Factors
jaxem.models.grammar: Grammar
jaxem.models.hmm: HMM
jaxem.models.item_response: ItemResponse
jaxem.models.lda: LDA
jaxem.models.linear_gaussian: LinearGaussian System
jaxem.models.markov_autoregression: MarkovAutoregression
jaxem.models.mixture: Mixture
jaxem.models.motif: Motif
jaxem.models.plsa: PLSA
jaxem.models.proportions: Proportions
jaxem.models.random_intercept: RandomIntercept
jaxem.models.rate_matrix: RateMatrix
jaxem.models.series: Series
jaxem.models.single: Single
jaxem.models.site_rates: FreeRates GammaRates OneRate
jaxem.models.state_inference: GaussianPath StateForecast
jaxem.models.state_space: StateSpace
jaxem.models.substitution: Substitution
jaxem.models.superposition: Superposition
jaxem.models.transition: Transition
jaxem.models.user: LogJoint LogMarginal
jaxem.models.wright_fisher: WrightFisher
jaxem.newick: Tree
jaxem.online: OnlineEM OnlineState
jaxem.operators.joseph: Grid Lines
jaxem.priors: Dirichlet GammaPrior NormalInverseWishart Smoothness
jaxem.sequences: Sequences
jaxem.types: Restarts Result Rows
"""
PATHS = [
    f"{module}.{name}"
    for module, written in (line.split(": ") for line in FROZEN.split("\n")[1:-1])
    for name in written.split()
]


def test_every_class_has_a_name_that_finds_it():
    written = {name_of(cls): cls for cls in STRUCTS.values()}
    assert len(written) == len(STRUCTS) and all(class_of(name) is cls for name, cls in written.items())
    assert name_of(jaxem.Gaussian) == "jaxem.Gaussian" and name_of(jaxem.init.Labels) == "jaxem.init.Labels"


def test_every_name_of_old_finds_its_class():
    found = {path: class_of(path) for path in PATHS}
    assert len(found) == 104 and len(set(found.values())) == 104
    renamed = {path for path, cls in found.items() if cls.__name__ != path.split(".")[-1]}
    assert renamed == {"jaxem.engine.fit._Options"}
    # Fingerprints go by these paths for ever.
    assert [first_path(cls) for cls in found.values()] == PATHS


def test_the_table_names_no_class_of_today():
    assert not set(names.MOVED) & set(STRUCTS)
    assert all(class_of(name) for name in names.MOVED.values())


@pytest.mark.parametrize("name", ["jaxem.fit", "jaxem.Model", "jaxem.save", "os.system", "jaxem.models.mixture.Nothing"])
def test_what_is_no_struct_is_not_found(name):
    with pytest.raises(KeyError):
        class_of(name)


def test_a_class_that_moves_breaks_no_file(tmp_path, monkeypatch):
    """Of a public one files break never; of another, and checkpoints of both, not after a line in the table."""
    one = jnp.float32(-1.0)
    restarts = jaxem.Restarts(one[None], one[None], jnp.ones(1, int), jnp.ones(1, int), one[None, None])
    model = jaxem.Mixture(2, jaxem.Poisson())
    params = {"weights": jnp.full(2, 0.5), "components": {"rate": jnp.ones((2, 1))}}
    result = jaxem.Result(params, None, one, one, jnp.int32(1), jnp.int32(1), jnp.int32(1), one[None], restarts, model)
    odd = dataclasses.replace(result, local={"sites": jaxem.constraints.Simplex()})
    jaxem.save(tmp_path / "public.npz", result)
    jaxem.save(tmp_path / "odd.npz", odd)
    before = fingerprint((model, odd))

    def move(cls):
        monkeypatch.delitem(STRUCTS, f"{cls.__module__}.{cls.__qualname__}")
        monkeypatch.setattr(cls, "__module__", "jaxem.elsewhere")
        monkeypatch.setitem(STRUCTS, f"jaxem.elsewhere.{cls.__qualname__}", cls)

    move(jaxem.Poisson)
    move(jaxem.constraints.Simplex)
    assert jaxem.load(tmp_path / "public.npz").model == model
    with pytest.raises(jaxem.FileError, match=r"put together.*Simplex"):
        jaxem.load(tmp_path / "odd.npz")
    assert fingerprint((model, odd)) != before
    monkeypatch.setitem(names.MOVED, "jaxem.constraints.Simplex", "jaxem.elsewhere.Simplex")
    monkeypatch.setitem(names.MOVED, "jaxem.families.poisson.Poisson", "jaxem.Poisson")
    assert type(jaxem.load(tmp_path / "odd.npz").local["sites"]) is jaxem.constraints.Simplex
    assert fingerprint((model, odd)) == before


def test_a_users_leaf_of_the_old_name_stays(tmp_path):
    state = {"lanes": {"x": jnp.arange(3.0)}}
    Checkpoint(tmp_path).save(state)
    assert (Checkpoint(tmp_path).restore(state)[1]["lanes"]["x"] == state["lanes"]["x"]).all()
    assert (Checkpoint(tmp_path).restore({"restarts": state["lanes"]})[1]["restarts"]["x"] == state["lanes"]["x"]).all()
