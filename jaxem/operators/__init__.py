"""Linear functions for `jaxem.Superposition`: pure functions whose arrays are arguments, differentiated by JAX alone."""

from jaxem.operators.convolution import convolve
from jaxem.operators.joseph import Grid, Lines, centred_grid, joseph, parallel_beam

__all__ = ["Grid", "Lines", "centred_grid", "convolve", "joseph", "parallel_beam"]
