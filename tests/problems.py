"""Three small problems: a mixture, a chain and a model from a function, each with its start."""

import numpy as np
from linkage import CELLS, COUNTS, by_cells
from support import DATA, clusters

import jaxem


def mixture():
    x = clusters(150, 2, 2, seed=3, spread=1.0)
    covariance = np.stack([np.eye(2)] * 2)
    init = {"weights": np.full(2, 0.5), "components": {"mean": x[[0, 5]], "covariance": covariance}}
    return {"model": jaxem.GaussianMixture(2), "data": x, "init": init}


def chain():
    init = {
        "initial": np.full(2, 0.5),
        "transition": np.array([[0.8, 0.2], [0.2, 0.8]]),
        "emission": {"rate": np.array([15.0, 25.0])},
    }
    counts = np.loadtxt(DATA / "earthquakes.csv", skiprows=1)
    return {"model": jaxem.HMM(2, jaxem.Poisson()), "data": counts, "init": init}


def linkage():
    return {"model": by_cells(), "data": CELLS, "weight": COUNTS}


PROBLEMS = {"mixture": mixture, "chain": chain, "log_joint": linkage}


def rises(history) -> bool:
    history = np.asarray(history)
    return bool((np.diff(history) >= -1e-12 * np.abs(history).max()).all())
