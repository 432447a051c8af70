"""jaxem: Expectation-Maximization in JAX."""

from jaxem import constraints, datasets, init, latents
from jaxem._version import __version__
from jaxem.check import LawError, check_model
from jaxem.engine.accelerate import QuasiNewton, Squarem
from jaxem.engine.algorithm import ECM, EM, GEM, Algorithm, HardEM
from jaxem.engine.anderson import Anderson
from jaxem.engine.conjugate_gradient import ConjugateGradient
from jaxem.engine.fit import fit
from jaxem.engine.newton import newton
from jaxem.engine.regularizer import L1, L2
from jaxem.engine.restarts import Rounds
from jaxem.engine.stop import Stop
from jaxem.evaluate.bootstrap import Bootstrap, bootstrap
from jaxem.evaluate.cross_validation import CrossValidation, cross_validate
from jaxem.evaluate.em_rate import MissingInformation, em_rate, missing_information
from jaxem.evaluate.information import Information, SingularInformationError, information, intervals, standard_errors
from jaxem.evaluate.selection import Candidate, Selection, aic, bic, icl, select
from jaxem.families.bernoulli import Bernoulli
from jaxem.families.categorical import Categorical
from jaxem.families.density import Density, density
from jaxem.families.family_mixture import FamilyMixture
from jaxem.families.gamma import Gamma
from jaxem.families.gaussian import Gaussian
from jaxem.families.multinomial import Multinomial
from jaxem.families.negative_binomial import NegativeBinomial
from jaxem.families.poisson import Poisson
from jaxem.families.product import Product
from jaxem.families.regression import AutoRegression, LinearRegression
from jaxem.families.student_t import StudentT
from jaxem.families.von_mises import VonMises
from jaxem.models.chain_inference import Forecast, expected_durations
from jaxem.models.hmm import HMM
from jaxem.models.lda import LDA
from jaxem.models.markov_autoregression import MarkovAutoregression
from jaxem.models.mixture import GaussianMixture, Mixture
from jaxem.models.state_inference import GaussianPath, StateForecast
from jaxem.models.state_space import StateSpace
from jaxem.models.structural import DynamicFactor, LocalLevel, LocalLinearTrend
from jaxem.models.substitution import Substitution
from jaxem.models.superposition import Superposition
from jaxem.models.transition import Transition, banded, left_right, sticky
from jaxem.models.user import log_joint, log_marginal
from jaxem.priors import Dirichlet, GammaPrior, NormalInverseWishart
from jaxem.sequences import Sequences, lagged, sequences
from jaxem.types import FitError, Model, Restarts, Result, Rows, Status, StopReason, static, struct

__all__ = [
    "ECM",
    "EM",
    "GEM",
    "HMM",
    "L1",
    "L2",
    "LDA",
    "Algorithm",
    "Anderson",
    "AutoRegression",
    "Bernoulli",
    "Bootstrap",
    "Candidate",
    "Categorical",
    "ConjugateGradient",
    "CrossValidation",
    "Density",
    "Dirichlet",
    "DynamicFactor",
    "FamilyMixture",
    "FitError",
    "Forecast",
    "Gamma",
    "GammaPrior",
    "Gaussian",
    "GaussianMixture",
    "GaussianPath",
    "HardEM",
    "Information",
    "LawError",
    "LinearRegression",
    "LocalLevel",
    "LocalLinearTrend",
    "MarkovAutoregression",
    "MissingInformation",
    "Mixture",
    "Model",
    "Multinomial",
    "NegativeBinomial",
    "NormalInverseWishart",
    "Poisson",
    "Product",
    "QuasiNewton",
    "Restarts",
    "Result",
    "Rounds",
    "Rows",
    "Selection",
    "Sequences",
    "SingularInformationError",
    "Squarem",
    "StateForecast",
    "StateSpace",
    "Status",
    "Stop",
    "StopReason",
    "StudentT",
    "Substitution",
    "Superposition",
    "Transition",
    "VonMises",
    "__version__",
    "aic",
    "banded",
    "bic",
    "bootstrap",
    "check_model",
    "constraints",
    "cross_validate",
    "datasets",
    "density",
    "em_rate",
    "expected_durations",
    "fit",
    "icl",
    "information",
    "init",
    "intervals",
    "lagged",
    "latents",
    "left_right",
    "log_joint",
    "log_marginal",
    "missing_information",
    "newton",
    "select",
    "sequences",
    "standard_errors",
    "static",
    "sticky",
    "struct",
]
