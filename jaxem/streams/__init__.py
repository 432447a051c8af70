"""Fits to data that come in batches: exact ones, online EM, and where batches come from. Only public names import it."""
