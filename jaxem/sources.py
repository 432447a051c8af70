"""Where batches come from: a door to `jaxem.streams.sources`."""

from jaxem.streams.sources import Array, BatchError, Columns, Npy, Source

__all__ = ["Array", "BatchError", "Columns", "Npy", "Source"]
