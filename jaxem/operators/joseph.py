"""Joseph's projector: integrals of an image along lines, by linear interpolation (Joseph 1982)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.pytree import struct

#: Lines integrated at a time: what bounds the memory of a projection and of its adjoint.
CHUNK = 2_048


@struct
class Grid:
    """Where the pixels of an image lie; pixel (i, j) is centred at origin + (i, j) * spacing.

    Attributes:
        origin: (2,) centre of pixel (0, 0), in any unit of length.
        spacing: (2,) size of a pixel, in the same unit.
    """

    origin: Array | np.ndarray
    spacing: Array | np.ndarray


@struct
class Lines:
    """Lines of response, from one detector to another; axis 0 of a point goes with axis 0 of the image.

    Attributes:
        start: (..., 2), in the unit of the grid.
        end: (..., 2).
    """

    start: Array | np.ndarray
    end: Array | np.ndarray


def centred_grid(shape: tuple[int, int], spacing: float = 1.0) -> Grid:
    """The grid of an image of `shape` about the origin, its pixels squares of side `spacing`."""
    size = np.full(2, float(spacing))
    return Grid(-size * (np.asarray(shape) - 1) / 2, size)


def parallel_beam(n_views: int, n_bins: int, bin_size: float = 1.0, length: float | None = None) -> Lines:
    """Parallel lines at equally spaced angles over half a turn, about the origin.

    Args:
        n_views: V.
        n_bins: lines of a view.
        bin_size: distance of neighbouring lines.
        length: of a line; None is twice the width of a view, which passes any image that it covers.

    Returns:
        `Lines` with leaves (V, n_bins, 2), one row of data a view.
    """
    angle = np.pi * np.arange(n_views) / n_views
    along = np.stack([np.cos(angle), np.sin(angle)], -1)[:, None]
    across = np.stack([-np.sin(angle), np.cos(angle)], -1)[:, None]
    centre = across * ((np.arange(n_bins) - (n_bins - 1) / 2) * bin_size)[:, None]
    half = n_bins * bin_size if length is None else length / 2
    return Lines(centre - half * along, centre + half * along)


def joseph(grid: Grid, image: Array, lines: Lines) -> Array:
    """(...) integrals of the image along lines, an operator of `jaxem.Superposition`.

    A line crosses the rows of pixels (or the columns, whichever it crosses more steeply) one after another; where
    it meets each, the image is interpolated between the two nearest pixels. Beyond its border the image is zero.

    Args:
        grid: where the pixels lie.
        image: (X, Y).
        lines: leaves (..., 2).
    """
    shape = lines.start.shape[:-1]
    start, end = ((jnp.asarray(x, image.dtype).reshape(-1, 2) - grid.origin) / grid.spacing for x in (lines.start, lines.end))
    # Positions and weights are cheap: the adjoint computes them again instead of keeping those of all lines.
    along = jax.checkpoint(lambda ends: _integral(image, jnp.asarray(grid.spacing, image.dtype), *ends))
    return jax.lax.map(along, (start, end), batch_size=CHUNK).reshape(shape)


def _integral(image: Array, spacing: Array, start: Array, end: Array) -> Array:
    """The integral along one line; its ends (2,) in pixels."""
    way = end - start
    steep = jnp.abs(way[0]) >= jnp.abs(way[1])  # crosses axis 0 in steps of one pixel
    first = lambda a, b: jnp.where(steep, a, b)  # noqa: E731
    (n, m), (stride, step) = image.shape, (image.shape[1], 1)
    # The axis that is stepped along, and the other.
    at, other = first(start[0], start[1]), first(start[1], start[0])
    rise, drift = first(way[0], way[1]), first(way[1], way[0])
    size, width = first(n, m), first(m, n)
    row_stride, column_stride = first(stride, step), first(step, stride)

    i = jnp.arange(max(n, m))
    share = (i - at) / jnp.where(rise == 0, 1, rise)
    place = other + share * drift
    crossed = (i < size) & (share >= 0) & (share <= 1) & (rise != 0)
    below = jnp.floor(place)

    def near(j: Array, weight: Array) -> Array:
        inside = crossed & (j >= 0) & (j < width)
        index = jnp.where(inside, i * row_stride + j.astype(jnp.int32) * column_stride, 0)
        return jnp.where(inside, weight, 0) * image.reshape(-1)[index]

    values = near(below, 1 - (place - below)) + near(below + 1, place - below)
    # Length of the line between one row of pixels and the next.
    return values.sum() * jnp.sqrt(jnp.square(way * spacing).sum()) / jnp.abs(jnp.where(rise == 0, 1, rise))
