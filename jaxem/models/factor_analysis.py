"""Factor analysis and probabilistic principal components, from rows with gaps or from a covariance matrix."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem import constraints as sets
from jaxem.data.validation import check_columns_seen, check_positive_int, matrix_with_missing, numeric
from jaxem.families.missing import filled
from jaxem.model import Model, one_program
from jaxem.numerics.affine import Affine, standardization
from jaxem.numerics.linalg import PRECISION, cholesky, inverse_lower, transpose
from jaxem.numerics.logs import divided
from jaxem.pytree import PyTree, static, struct
from jaxem.types import Params, Rows

NOISES = ("diag", "isotropic")
#: Uniquenesses that a start may have, as shares of a column's variance.
START = (0.05, 0.95)
#: Factor of its floor at which noise counts as there: on its way to zero it falls as 1 / step, and EM stops before.
NEAR = 10
#: The same where a factor is one column's own: the others leave more than 49 times its noise open of what it shares.
OWN_NEAR, OWN = 200, 0.98
#: Rounding units, relative to a column's variance, below which no noise goes: its densities would be all rounding.
ROUNDING = 1e3
#: Least share of its noise that a factor explains at the start: loadings of zero would stay there.
LEAST = 1e-2


def _weights(params: Params) -> Array:
    """(D, Q + 1) of the regression of each column on the factors and 1."""
    return jnp.concatenate([params["loadings"], params["mean"][:, None]], 1)


def _product(left: Array, right: Array) -> Array:
    return jnp.tensordot(left, right, 1, precision=PRECISION)


def _apply(matrices: Array, vectors: Array) -> Array:
    return jnp.einsum("nij,nj->ni", matrices, vectors, precision=PRECISION)


@struct
class Factors:
    """What a row tells of its factors: Normal(mean, covariance).

    Attributes:
        mean: (N, Q) posterior means, the regression scores of Thomson.
        covariance: (N, Q, Q).
    """

    mean: Array
    covariance: Array


@struct
class FactorAnalysis(Model):
    """x = mean + loadings z + noise, z ~ Normal(0, I), noise of variances `noise` (Rubin and Thayer 1982).

    Entries may be NaN: they are missing at random and summed out (Ghahramani and Hinton 1996, for mixtures of such).
    A row without any entry tells nothing. Given z the columns are regressions apart, so that the M-step solves one
    small system for each column, over the rows that show it.

    Parameters: `loadings` (D, Q), `mean` (D,) and `noise` (D,) or (). Data: (N, D). Loadings are determined up to a
    rotation, see `jaxem.varimax`; standard errors are those of the rotation `canonical`, and of `covariance` and
    `communalities`, which none changes. A covariance or correlation matrix is fitted by `jaxem.rows_of_covariance`.

    Starting values are the principal factors of the correlations at the communalities of Joreskog (1967); with a
    key, at random uniquenesses. For isotropic noise: the maximum of Tipping and Bishop (1999), which for data
    without gaps is the answer.

    Attributes:
        n_factors: Q, less than D.
        noise: "diag", a variance for each column, or "isotropic", one for all: probabilistic principal components.
        floor: least noise, relative to its column's variance ("diag") or their mean ("isotropic"); factanal of R has
            0.005. The estimate is the constrained maximum. A column near the floor, a Heywood case, makes a restart
            DEGENERATE.
        pattern: (D, Q) bools, False where a loading is held at zero (confirmatory factor analysis), or None.
    """

    n_factors: int = static()
    noise: str = static(NOISES, default="diag")
    floor: float | Array = 1e-5
    pattern: Any = None
    origin: Any = None

    needs_key: ClassVar[bool] = False
    missing: ClassVar[str] = "marginal"

    @property
    def constraints(self) -> dict[str, Any]:
        loadings = sets.Real() if self.pattern is None else sets.PartReal(~jnp.asarray(self.pattern))
        return {"loadings": loadings, "mean": sets.Real(), "noise": sets.Positive()}

    # --- the density -------------------------------------------------------------------------
    def centered(self, params: Params) -> FactorAnalysis:
        return dataclasses.replace(self, origin=_weights(params))

    def natural(self, params: Params) -> dict[str, Array]:
        """Of the regression of each column on v = (z, 1), r its residual x - origin v at the weights of `centered`.

        Leaves `own` (D,), t = r^2; `cross` (D, Q + 1), t = r v; `outer` (D, Q + 1, Q + 1), t = v v^T; and
        `log_det` (D,), t = 1; all zero for a column that the row does not show.
        """
        weights = _weights(params) if self.origin is None else _weights(params) - self.origin
        noise = jnp.broadcast_to(params["noise"], params["mean"].shape)
        return {
            "own": -1 / (2 * noise),
            "cross": weights / noise[:, None],
            "outer": -weights[:, :, None] * weights[:, None, :] / (2 * noise[:, None, None]),
            "log_det": -jnp.log(noise) / 2,
        }

    def pack(self, natural: PyTree) -> PyTree:
        """Beside the leaves `raw`, `cross` and `outer` as they are about an origin of zero."""
        own, cross, origin = natural["own"], natural["cross"], self.origin
        outer = (natural["outer"] + transpose(natural["outer"])) / 2
        raw = {"cross": cross, "outer": outer}
        if origin is not None:
            mixed = origin[:, :, None] * (own[:, None] * origin - cross)[:, None, :]
            raw = {"cross": cross - 2 * own[:, None] * origin, "outer": outer + (mixed + transpose(mixed)) / 2}
        return {**natural, "outer": outer, "raw": raw}

    def _factors(self, packed: PyTree, data: Array) -> tuple[Array, Array]:
        """(n, Q) posterior means of the factors, and (n, Q, Q) inverse Cholesky factors of their precisions."""
        q, there = self.n_factors, ~jnp.isnan(data)
        shown, cross, outer = there.astype(data.dtype), packed["raw"]["cross"], packed["raw"]["outer"]
        precision = jnp.eye(q, dtype=data.dtype) - 2 * _product(shown, outer[:, :q, :q])
        linear = _product(jnp.where(there, data, 0), cross[:, :q]) + 2 * _product(shown, outer[:, :q, q])
        root = inverse_lower(cholesky(precision))
        return _apply(transpose(root), _apply(root, linear)), root

    def log_marginal(self, natural: PyTree, data: Array, rows: Rows) -> Array:
        """The complete-data density at the mode of z, by residuals, which stay exact where noise is small."""
        del rows
        there = ~jnp.isnan(data)
        z, root = self._factors(natural, data)
        v = jnp.concatenate([z, jnp.ones_like(z[:, :1])], 1)
        fitted = 0 if self.origin is None else _product(v, self.origin.T)
        r = jnp.where(there, jnp.where(there, data, 0) - fitted, 0)
        shown = there.astype(data.dtype)
        mode = _product(r * r, natural["own"]) + (r * _product(v, natural["cross"].T)).sum(-1)
        mode = mode + (v * _apply(_product(shown, natural["outer"]), v)).sum(-1) - (z * z).sum(-1) / 2
        normalizer = _product(shown, natural["log_det"] - math.log(2 * math.pi) / 2)
        return mode + normalizer + jnp.log(jnp.diagonal(root, axis1=-2, axis2=-1)).sum(-1)

    def m_step(self, stats: PyTree, params: Params) -> Params:
        """Least squares of each column on its factors (Rubin and Thayer 1982, equations 6 to 8)."""
        count, cross = stats["log_det"], stats["cross"]
        outer = (stats["outer"] + transpose(stats["outer"])) / 2
        free = jnp.ones(cross.shape, bool)
        if self.pattern is not None:
            free = free.at[:, :-1].set(jnp.asarray(self.pattern, bool))
        present = shown = count > 0
        solvable = free[:, :, None] & free[:, None, :] & present[:, None, None]
        outer = jnp.where(solvable, outer, jnp.eye(cross.shape[1], dtype=cross.dtype))
        root = inverse_lower(cholesky(outer))
        half = _apply(root, jnp.where(free, cross, 0))
        weights = _apply(transpose(root), half)
        weights = weights if self.origin is None else self.origin + weights
        rest = stats["own"] - (half * half).sum(-1)
        if self.noise == "isotropic":
            rest, count, present = rest.sum(), count.sum(), count.sum() > 0
        noise = jnp.where(present, divided(rest, count), params["noise"])
        return {
            "loadings": jnp.where(shown[:, None], weights[:, :-1], params["loadings"]),
            "mean": jnp.where(shown, weights[:, -1], params["mean"]),
            "noise": jnp.maximum(noise, self._least(noise)),
        }

    def _least(self, noise: Array) -> Array:
        floor = jnp.asarray(self.floor, noise.dtype)
        return jnp.maximum(floor, jnp.where(floor > 0, ROUNDING * jnp.finfo(noise.dtype).eps, 0))

    def at_floor(self, params: Params) -> dict[str, Array]:
        nowhere = {name: jnp.zeros(params[name].shape, bool) for name in ("loadings", "mean")}
        noise, least = params["noise"], self._least(params["noise"])
        near = noise <= NEAR * least
        if self.noise == "diag":
            root = params["loadings"] / jnp.sqrt(noise)[:, None]
            inverse = inverse_lower(cholesky(jnp.eye(self.n_factors, dtype=noise.dtype) + _product(root.T, root)))
            own = jnp.square(_product(root, inverse.T)).sum(1)  # of a column's part in the factors, what it alone tells
            near = near | ((noise <= OWN_NEAR * least) & (own > OWN))
        return {**nowhere, "noise": near}

    # --- the boundary of fit -----------------------------------------------------------------
    def validate(self, data: Any) -> np.ndarray:
        """(N, D) floats, NaN where an entry is missing.

        Raises:
            ValueError: for a wrong rank, infinite entries, as many factors as columns, or a pattern of another shape.
        """
        check_positive_int(self.n_factors, "n_factors")
        data = matrix_with_missing(data)
        d, q = data.shape[1], self.n_factors
        if q >= d:
            raise ValueError(f"n_factors must be less than the number of columns, {d}; got {q}")
        if self.pattern is not None and np.shape(self.pattern) != (d, q):
            raise ValueError(f"pattern must have shape {(d, q)}, columns by factors; got {np.shape(self.pattern)}")
        return data

    def check_fit(self, data: Array) -> None:
        check_columns_seen(np.asarray(data))

    def template(self, data: Array) -> Params:
        d, dtype = data.shape[1], data.dtype
        noise = jnp.ones((d,) if self.noise == "diag" else (), dtype)
        return {"loadings": jnp.zeros((d, self.n_factors), dtype), "mean": jnp.zeros((d,), dtype), "noise": noise}

    def coordinates(self, data: Any, xp: Any, present: Any = None) -> Affine:
        return standardization(data, "diagonal" if self.noise == "diag" else "scalar", xp, present)

    def rescale_params(self, params: Params, affine: Affine) -> Params:
        return {
            "loadings": affine.differences(params["loadings"].T).T,
            "mean": affine.means(params["mean"]),
            "noise": affine.covariances(params["noise"]),
        }

    def initialize(self, key: Array | None, data: Array, weight: Array) -> Params:
        d, q = data.shape[1], self.n_factors
        x, share = filled(data), (weight / weight.sum())[:, None]
        mean = (share * x).sum(0)
        covariance = jnp.matmul((share * (x - mean)).T, x - mean, precision=PRECISION)
        if self.noise == "isotropic":
            values, vectors = jnp.linalg.eigh(covariance)
            noise = values[: d - q].mean()
            noise = jnp.maximum(noise, self._least(noise))
            loadings = vectors[:, d - q :] * jnp.sqrt(jnp.maximum(values[d - q :] - noise, LEAST * noise))
        else:
            scale = jnp.sqrt(jnp.where(jnp.diagonal(covariance) > 0, jnp.diagonal(covariance), 1))
            if key is None:
                known = covariance / (scale[:, None] * scale) + LEAST * jnp.eye(d, dtype=x.dtype)
                root = inverse_lower(cholesky(known))
                unique = jnp.clip((1 - q / (2 * d)) / jnp.square(root).sum(0), *START)
            else:
                unique = jax.random.uniform(key, (d,), x.dtype, *START)
            noise = unique * scale**2
            root = jnp.sqrt(noise)
            values, vectors = jnp.linalg.eigh(covariance / (root[:, None] * root))
            loadings = root[:, None] * vectors[:, d - q :] * jnp.sqrt(jnp.maximum(values[d - q :] - 1, LEAST))
        loadings = loadings[:, ::-1] if self.pattern is None else jnp.where(jnp.asarray(self.pattern), loadings[:, ::-1], 0)
        return {"loadings": loadings, "mean": mean, "noise": noise}

    # --- after the fit -----------------------------------------------------------------------
    @one_program
    def posterior(self, params: Params, data: Array) -> Factors:
        """Means (N, Q) and covariances (N, Q, Q) of the factors given what each row shows."""
        mean, root = self._factors(self.pack(self.natural(params)), jnp.asarray(data))
        return Factors(mean, jnp.matmul(transpose(root), root, precision=PRECISION))

    def impute(self, params: Params, data: Array) -> Array:
        """(N, D) rows with conditional means in place of what is missing."""
        data = jnp.asarray(data)
        expected = jnp.matmul(self.posterior(params, data).mean, params["loadings"].T, precision=PRECISION)
        return jnp.where(jnp.isnan(data), params["mean"] + expected, data)

    def covariance(self, params: Params) -> Array:
        """(D, D) covariance of a row, loadings loadings^T + noise."""
        loadings, noise = params["loadings"], params["noise"]
        common = jnp.matmul(loadings, loadings.T, precision=PRECISION)
        return common + jnp.diag(jnp.broadcast_to(noise, params["mean"].shape))

    def communalities(self, params: Params) -> Array:
        """(D,) share of each column's variance that the factors explain; the uniqueness is what is left of one."""
        common = jnp.square(params["loadings"]).sum(1)
        return common / (common + params["noise"])

    def canonical(self, params: Params, like: Params | None = None) -> Params:
        """Loadings turned so that loadings^T noise^-1 loadings is diagonal, the factor that explains most first (Lawley 1940).

        Each has a positive sum, or a positive product with that of `like`. With a `pattern` they are left as they are.
        """
        if self.pattern is not None:
            return params
        loadings = params["loadings"]
        noise = jnp.broadcast_to(params["noise"], params["mean"].shape)
        explained = jnp.matmul(loadings.T, loadings / noise[:, None], precision=PRECISION)
        turned = jnp.matmul(loadings, jnp.linalg.eigh(explained)[1][:, ::-1], precision=PRECISION)
        against = (turned if like is None else turned * like["loadings"]).sum(0) < 0
        return {**params, "loadings": turned * jnp.where(against, -1, 1)}

    def n_free_params(self, data: Array) -> int:
        """Mean, noise, and the loadings less the rotations that change nothing; no more than a covariance of its own has."""
        d = data.shape[1]
        pattern = np.ones((d, self.n_factors), bool) if self.pattern is None else np.asarray(self.pattern, bool)
        _, alike = np.unique(pattern, axis=1, return_counts=True)  # only factors of one pattern can be turned
        rotations = int((alike * (alike - 1) // 2).sum())
        free = int(pattern.sum()) - rotations + (d if self.noise == "diag" else 1)
        return d + min(free, d * (d + 1) // 2)

    @one_program
    def sample(self, key: Array, params: Params, n: int) -> Array:
        """(n, D) rows."""
        first, second = jax.random.split(key)
        loadings, mean = params["loadings"], params["mean"]
        z = jax.random.normal(first, (n, self.n_factors), mean.dtype)
        noise = jnp.sqrt(params["noise"]) * jax.random.normal(second, (n, mean.shape[0]), mean.dtype)
        return mean + jnp.matmul(z, loadings.T, precision=PRECISION) + noise


def PPCA(n_factors: int, floor: float | Array = 1e-8) -> FactorAnalysis:  # noqa: N802
    """Probabilistic principal components (Tipping and Bishop 1999): factor analysis with one noise variance for all columns.

    Args:
        n_factors: Q, the number of components.
        floor: least noise, relative to the mean variance of the columns.
    """
    return FactorAnalysis(n_factors, noise="isotropic", floor=floor)


def rows_of_covariance(covariance: Any, n: float, mean: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Rows and weights that tell a Gaussian model all that n rows of this covariance would.

    Args:
        covariance: (D, D) covariance (divisor n) or correlation matrix, symmetric positive definite.
        n: number of rows that it was taken from.
        mean: (D,) or None for zeros.

    Returns:
        data (2 D, D) and weight (2 D,), for `fit(model, data, weight=weight)`.

    Raises:
        ValueError: for another shape, or what is not symmetric positive definite.
    """
    matrix = numeric(covariance, "covariance").astype(np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"covariance must have shape (D, D); got {matrix.shape}")
    if wanted := sets.SPD().violation(matrix):
        least = np.linalg.eigvalsh(matrix)[0] if np.isfinite(matrix).all() else np.nan
        raise ValueError(f"covariance must be {wanted}; its least eigenvalue is {least:.3g}")
    if not n > 0:
        raise ValueError(f"n must be positive; got {n}")
    d = len(matrix)
    # The columns of a square root, once with each sign.
    root = math.sqrt(d) * np.linalg.cholesky(matrix).T
    rows = np.concatenate([root, -root]) + (0 if mean is None else np.asarray(mean, np.float64))
    return rows, np.full(2 * d, n / (2 * d))
