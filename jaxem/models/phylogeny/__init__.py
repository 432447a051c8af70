"""Models whose latent values are the letters at the nodes of a tree. Helpers that only they need stand here."""
