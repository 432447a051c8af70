"""From a call of `fit` to its result: checks, coordinates, layout, segments. Streams, evaluation and checks import it."""
