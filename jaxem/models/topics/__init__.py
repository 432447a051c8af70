"""Models whose latent values are the topics of words. Helpers that only they need stand here."""
