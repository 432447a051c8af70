"""jaxem: Expectation-Maximization in JAX."""

from jaxem import constraints, datasets, distributed, init, latents, online, operators, sources
from jaxem._version import __version__
from jaxem.algorithms.anderson import Anderson
from jaxem.algorithms.conjugate_gradient import ConjugateGradient
from jaxem.algorithms.ecm import ECM
from jaxem.algorithms.gem import GEM
from jaxem.algorithms.hard_em import HardEM
from jaxem.algorithms.jump import Accelerator
from jaxem.algorithms.newton import newton
from jaxem.algorithms.ordered_subsets import OrderedSubsets
from jaxem.algorithms.quasi_newton import QuasiNewton
from jaxem.algorithms.squarem import Squarem
from jaxem.check import LawError, check_model
from jaxem.data.alignment import Alignment, read_alignment
from jaxem.data.configurations import equivalence_classes, genotype_likelihoods, genotypes, time_intervals
from jaxem.data.documents import Documents, documents
from jaxem.data.haplotypes import haplotype_pairs
from jaxem.data.newick import Tree, read_newick
from jaxem.data.sequences import Sequences, lagged, sequences
from jaxem.engine.em import EM
from jaxem.engine.problem import Algorithm, Move, Point, Problem
from jaxem.engine.regularizer import L1, L2
from jaxem.engine.restarts import Rounds
from jaxem.engine.stop import Step, Stop, StopRule
from jaxem.evaluate.bootstrap import Bootstrap, bootstrap
from jaxem.evaluate.cross_validation import CrossValidation, cross_validate
from jaxem.evaluate.em_rate import MissingInformation, em_rate, missing_information
from jaxem.evaluate.information import Information, SingularInformationError, information, intervals, standard_errors
from jaxem.evaluate.local_fdr import TwoGroups, two_groups
from jaxem.evaluate.predictive import predictive_moments
from jaxem.evaluate.rotation import varimax
from jaxem.evaluate.selection import Candidate, Selection, aic, bic, icl, select
from jaxem.evaluate.unlabelled import UnlabelledWeight, fit_labelled, unlabelled_weight
from jaxem.families.base import Family
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
from jaxem.fitting.fit import fit
from jaxem.fitting.monitor import Snapshot
from jaxem.fitting.plan import Plan, plan
from jaxem.init import Init
from jaxem.model import Model
from jaxem.models.ancestry import Ancestry
from jaxem.models.censored import CensoredRegression
from jaxem.models.chains.hmm import HMM
from jaxem.models.chains.inference import Forecast, expected_durations
from jaxem.models.chains.markov_autoregression import MarkovAutoregression
from jaxem.models.chains.transition import Transition, banded, left_right, sticky
from jaxem.models.chains.wright_fisher import WrightFisher
from jaxem.models.factor_analysis import PPCA, FactorAnalysis, Factors, rows_of_covariance
from jaxem.models.grammar import Grammar
from jaxem.models.item_response import ItemResponse
from jaxem.models.mixture import GaussianMixture, Mixture
from jaxem.models.motif import Motif, dna
from jaxem.models.phylogeny.rate_matrix import F81, GTR, HKY, JC, UNREST, RateMatrix
from jaxem.models.phylogeny.site_rates import FreeRates, GammaRates, OneRate
from jaxem.models.phylogeny.substitution import Substitution
from jaxem.models.proportions import Proportions
from jaxem.models.random_intercept import RandomIntercept
from jaxem.models.single import MultivariateNormal, MultivariateT, Single
from jaxem.models.state_space.inference import GaussianPath, StateForecast
from jaxem.models.state_space.state_space import StateSpace
from jaxem.models.state_space.structural import DynamicFactor, LocalLevel, LocalLinearTrend
from jaxem.models.superposition import Superposition
from jaxem.models.topics.lda import LDA
from jaxem.models.topics.plsa import PLSA
from jaxem.models.topics.words import completion_perplexity, split_words, top_words
from jaxem.models.user import log_joint, log_marginal
from jaxem.priors import Dirichlet, GammaPrior, NormalInverseWishart, Smoothness
from jaxem.pytree import static, struct
from jaxem.storage.archive import FileError
from jaxem.storage.checkpoint import Checkpoint
from jaxem.storage.results import load, save
from jaxem.streams.fit_stream import fit_stream
from jaxem.streams.online import OnlineEM
from jaxem.streams.predict_stream import predict_stream
from jaxem.streams.sources import BatchError
from jaxem.types import FitError, Moments, Restarts, Result, Rows, Status, StopReason

__all__ = [
    "ECM",
    "EM",
    "F81",
    "GEM",
    "GTR",
    "HKY",
    "HMM",
    "JC",
    "L1",
    "L2",
    "LDA",
    "PLSA",
    "PPCA",
    "UNREST",
    "Accelerator",
    "Algorithm",
    "Alignment",
    "Ancestry",
    "Anderson",
    "AutoRegression",
    "BatchError",
    "Bernoulli",
    "Bootstrap",
    "Candidate",
    "Categorical",
    "CensoredRegression",
    "Checkpoint",
    "ConjugateGradient",
    "CrossValidation",
    "Density",
    "Dirichlet",
    "Documents",
    "DynamicFactor",
    "FactorAnalysis",
    "Factors",
    "Family",
    "FamilyMixture",
    "FileError",
    "FitError",
    "Forecast",
    "FreeRates",
    "Gamma",
    "GammaPrior",
    "GammaRates",
    "Gaussian",
    "GaussianMixture",
    "GaussianPath",
    "Grammar",
    "HardEM",
    "Information",
    "Init",
    "ItemResponse",
    "LawError",
    "LinearRegression",
    "LocalLevel",
    "LocalLinearTrend",
    "MarkovAutoregression",
    "MissingInformation",
    "Mixture",
    "Model",
    "Moments",
    "Motif",
    "Move",
    "Multinomial",
    "MultivariateNormal",
    "MultivariateT",
    "NegativeBinomial",
    "NormalInverseWishart",
    "OneRate",
    "OnlineEM",
    "OrderedSubsets",
    "Plan",
    "Point",
    "Poisson",
    "Problem",
    "Product",
    "Proportions",
    "QuasiNewton",
    "RandomIntercept",
    "RateMatrix",
    "Restarts",
    "Result",
    "Rounds",
    "Rows",
    "Selection",
    "Sequences",
    "Single",
    "SingularInformationError",
    "Smoothness",
    "Snapshot",
    "Squarem",
    "StateForecast",
    "StateSpace",
    "Status",
    "Step",
    "Stop",
    "StopReason",
    "StopRule",
    "StudentT",
    "Substitution",
    "Superposition",
    "Transition",
    "Tree",
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
    "completion_perplexity",
    "constraints",
    "cross_validate",
    "datasets",
    "density",
    "distributed",
    "dna",
    "documents",
    "em_rate",
    "equivalence_classes",
    "expected_durations",
    "fit",
    "fit_labelled",
    "fit_stream",
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
    "load",
    "log_joint",
    "log_marginal",
    "missing_information",
    "newton",
    "online",
    "operators",
    "plan",
    "predict_stream",
    "predictive_moments",
    "read_alignment",
    "read_newick",
    "rows_of_covariance",
    "save",
    "select",
    "sequences",
    "sources",
    "split_words",
    "standard_errors",
    "static",
    "sticky",
    "struct",
    "time_intervals",
    "top_words",
    "two_groups",
    "unlabelled_weight",
    "varimax",
]
