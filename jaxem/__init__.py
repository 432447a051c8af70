"""jaxem: Expectation-Maximization in JAX."""

from jaxem import constraints, datasets, init, latents
from jaxem._version import __version__
from jaxem.check import LawError, check_model
from jaxem.configurations import equivalence_classes, genotype_likelihoods, genotypes, haplotype_pairs, time_intervals
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
from jaxem.evaluate.local_fdr import TwoGroups, two_groups
from jaxem.evaluate.predictive import predictive_moments
from jaxem.evaluate.selection import Candidate, Selection, aic, bic, icl, select
from jaxem.evaluate.unlabelled import UnlabelledWeight, fit_labelled, unlabelled_weight
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
from jaxem.models.censored import CensoredRegression
from jaxem.models.chain_inference import Forecast, expected_durations
from jaxem.models.grammar import Grammar
from jaxem.models.hmm import HMM
from jaxem.models.item_response import ItemResponse
from jaxem.models.lda import LDA
from jaxem.models.local_level import LocalLevel
from jaxem.models.markov_autoregression import MarkovAutoregression
from jaxem.models.mixture import GaussianMixture, Mixture
from jaxem.models.motif import Motif, dna
from jaxem.models.proportions import Proportions
from jaxem.models.random_intercept import RandomIntercept
from jaxem.models.substitution import Substitution
from jaxem.models.superposition import Superposition
from jaxem.models.transition import Transition, banded, left_right, sticky
from jaxem.models.user import log_joint, log_marginal
from jaxem.models.wright_fisher import WrightFisher
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
    "CensoredRegression",
    "ConjugateGradient",
    "CrossValidation",
    "Density",
    "Dirichlet",
    "FamilyMixture",
    "FitError",
    "Forecast",
    "Gamma",
    "GammaPrior",
    "Gaussian",
    "GaussianMixture",
    "Grammar",
    "HardEM",
    "Information",
    "ItemResponse",
    "LawError",
    "LinearRegression",
    "LocalLevel",
    "MarkovAutoregression",
    "MissingInformation",
    "Mixture",
    "Model",
    "Motif",
    "Multinomial",
    "NegativeBinomial",
    "NormalInverseWishart",
    "Poisson",
    "Product",
    "Proportions",
    "QuasiNewton",
    "RandomIntercept",
    "Restarts",
    "Result",
    "Rounds",
    "Rows",
    "Selection",
    "Sequences",
    "SingularInformationError",
    "Squarem",
    "Status",
    "Stop",
    "StopReason",
    "StudentT",
    "Substitution",
    "Superposition",
    "Transition",
    "TwoGroups",
    "UnlabelledWeight",
    "VonMises",
    "WrightFisher",
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
    "dna",
    "em_rate",
    "equivalence_classes",
    "expected_durations",
    "fit",
    "fit_labelled",
    "genotype_likelihoods",
    "genotypes",
    "haplotype_pairs",
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
    "predictive_moments",
    "select",
    "sequences",
    "standard_errors",
    "static",
    "sticky",
    "struct",
    "time_intervals",
    "two_groups",
    "unlabelled_weight",
]
