"""EM on a stream, batch by batch: a door to `jaxem.streams.online`."""

from jaxem.streams.online import OnlineEM, OnlineState, Trace, init, run, update

__all__ = ["OnlineEM", "OnlineState", "Trace", "init", "run", "update"]
