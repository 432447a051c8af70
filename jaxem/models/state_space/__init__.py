"""Models whose latent values are a Gaussian chain. Helpers that only they need stand here."""
