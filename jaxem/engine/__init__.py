"""EM itself, all of it traced; it knows no model, and no model knows it. Algorithms, fits and all above them import it."""
