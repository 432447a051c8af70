"""jaxem: Expectation-Maximization in JAX."""

from jaxem import constraints, init
from jaxem._version import __version__
from jaxem.check import LawError, check_model
from jaxem.engine.fit import fit
from jaxem.engine.loop import EM
from jaxem.engine.restarts import Rounds
from jaxem.engine.stop import Stop
from jaxem.families.categorical import Categorical
from jaxem.families.gamma import Gamma
from jaxem.families.gaussian import Gaussian
from jaxem.families.poisson import Poisson
from jaxem.models.mixture import GaussianMixture, Mixture
from jaxem.priors import Dirichlet, GammaPrior, NormalInverseWishart
from jaxem.types import FitError, Model, Restarts, Result, Rows, Status, StopReason, static, struct
