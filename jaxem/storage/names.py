"""What things are called in files and in fingerprints: names that outlast a move of a class."""

from __future__ import annotations

import re
import sys
from collections.abc import Container

from jaxem.pytree import STRUCTS, struct_name

#: Paths by which files of older versions know classes, and their names now. A class that moves or changes its name
#: gets a line here, and no file breaks.
MOVED: dict[str, str] = {
    "jaxem.affine.Affine": "jaxem.numerics.affine.Affine",
    "jaxem.alignment.Alignment": "jaxem.Alignment",
    "jaxem.blocks.Blocks": "jaxem.numerics.blocks.Blocks",
    "jaxem.documents.Documents": "jaxem.Documents",
    "jaxem.engine.accelerate.QuasiNewton": "jaxem.QuasiNewton",
    "jaxem.engine.accelerate.Squarem": "jaxem.Squarem",
    "jaxem.engine.algorithm.ECM": "jaxem.ECM",
    "jaxem.engine.algorithm.EM": "jaxem.EM",
    "jaxem.engine.algorithm.GEM": "jaxem.GEM",
    "jaxem.engine.algorithm.HardEM": "jaxem.HardEM",
    "jaxem.engine.anderson.Anderson": "jaxem.Anderson",
    "jaxem.engine.conjugate_gradient.ConjugateGradient": "jaxem.ConjugateGradient",
    "jaxem.engine.fit._Options": "jaxem.fitting.task.Options",
    "jaxem.engine.ordered_subsets.OrderedSubsets": "jaxem.OrderedSubsets",
    "jaxem.models.chain_inference.Chain": "jaxem.models.chains.inference.Chain",
    "jaxem.models.chain_inference.Forecast": "jaxem.Forecast",
    "jaxem.models.hmm.HMM": "jaxem.HMM",
    "jaxem.models.lda.LDA": "jaxem.LDA",
    "jaxem.models.linear_gaussian.LinearGaussian": "jaxem.models.state_space.linear_gaussian.LinearGaussian",
    "jaxem.models.linear_gaussian.System": "jaxem.models.state_space.linear_gaussian.System",
    "jaxem.models.markov_autoregression.MarkovAutoregression": "jaxem.MarkovAutoregression",
    "jaxem.models.plsa.PLSA": "jaxem.PLSA",
    "jaxem.models.rate_matrix.RateMatrix": "jaxem.RateMatrix",
    "jaxem.models.series.Series": "jaxem.models.state_space.series.Series",
    "jaxem.models.site_rates.FreeRates": "jaxem.FreeRates",
    "jaxem.models.site_rates.GammaRates": "jaxem.GammaRates",
    "jaxem.models.site_rates.OneRate": "jaxem.OneRate",
    "jaxem.models.state_inference.GaussianPath": "jaxem.GaussianPath",
    "jaxem.models.state_inference.StateForecast": "jaxem.StateForecast",
    "jaxem.models.state_space.StateSpace": "jaxem.StateSpace",
    "jaxem.models.substitution.Substitution": "jaxem.Substitution",
    "jaxem.models.transition.Transition": "jaxem.Transition",
    "jaxem.models.wright_fisher.WrightFisher": "jaxem.WrightFisher",
    "jaxem.newick.Tree": "jaxem.Tree",
    "jaxem.online.OnlineEM": "jaxem.OnlineEM",
    "jaxem.online.OnlineState": "jaxem.streams.online.OnlineState",
    "jaxem.sequences.Sequences": "jaxem.Sequences",
}


#: Fields that a class gained, and that old checkpoints do not know: where they hold nothing, nothing is told of them.
GAINED = {"jaxem.Poisson": ("origin",), "jaxem.Stop": ("to_gain",)}


def name_of(cls: type) -> str:
    """What new files call a struct: "jaxem.Gaussian" where that is a public name, else its path."""
    package = sys.modules["jaxem"]
    public = cls.__name__ in package.__all__ and getattr(package, cls.__name__) is cls
    return f"jaxem.{cls.__name__}" if public else struct_name(cls)


def class_of(name: str) -> type:
    """The struct that a file, of whatever version, calls `name`; raises KeyError for what is no struct of jaxem's."""
    known = STRUCTS | {name_of(cls): cls for cls in STRUCTS.values()}
    return known[MOVED.get(name, name)]


def first_path(cls: type) -> str:
    """The path at which a class first stood, wherever it stands now: so a checkpoint outlasts a move too."""
    now = (struct_name(cls), name_of(cls))
    return next((old for old, new in MOVED.items() if new in now), now[0])


def leaf_now(name: str, known: Container[str]) -> str:
    """The name that a leaf of a checkpoint has now: restarts were once called lanes."""
    return name if name in known else re.sub(r"^lanes\.", "restarts.", name)
