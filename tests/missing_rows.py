"""Rows that lack entries, and densities of what is there."""

import numpy as np
import pytest


def gaps(x, share=0.3, seed=0):
    """`x` with a share of its entries missing, in rows of every kind: complete, partial and empty."""
    x = np.array(x)
    x[np.random.default_rng(seed).random(x.shape) < share] = np.nan
    x[0], x[1] = np.where(np.isnan(x[0]), 0.5, x[0]), np.nan
    return x


def by_rows(x, density):
    """(n,) `density(observed values, their columns)` of each row, 0 of an empty one."""
    there = ~np.isnan(x)
    return np.array([density(row[on], on) if on.any() else 0.0 for row, on in zip(x, there, strict=True)])


def stock_returns():
    datasets = pytest.importorskip("skfolio.datasets")
    return datasets.load_sp500_dataset().pct_change().dropna().to_numpy()
