"""Convolution with a kernel of all that is seen, its border included."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array


def convolve(kernel: Array, image: Array) -> Array:
    """The part of a convolution that no border reaches, an operator of `jaxem.Superposition`.

    What is seen of shape (H, W) through a kernel of shape (h, w) comes from an image of shape (H + h - 1, W + w - 1):
    the light beyond the border of what is seen is unknown like the rest, rather than zero, mirrored or periodic
    (Bertero and Boccacci 2005). By fast Fourier transforms, for any number of axes: their rounding, 1e-7 of the brightest
    pixel in float32, may take what is quite dark below zero. Give such scenes a background, or compute in float64.

    Args:
        kernel: point-spread function, odd or even in size.
        image: as many axes, no shorter than the kernel.

    Returns:
        The convolution, shorter than `image` by the kernel's shape less one.
    """
    axes = tuple(range(image.ndim))
    # Circular: what wraps around lies within the border that is cut off.
    spectrum = jnp.fft.rfftn(image, axes=axes) * jnp.fft.rfftn(jnp.asarray(kernel, image.dtype), image.shape, axes=axes)
    whole = jnp.fft.irfftn(spectrum, image.shape, axes=axes)
    return whole[tuple(slice(size - 1, None) for size in kernel.shape)]
