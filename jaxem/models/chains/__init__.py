"""Models whose latent values are a Markov chain. Helpers that only they need stand here."""
