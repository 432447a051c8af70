"""Other ways to move than plain EM, one method a file; they know the engine alone. Only the public names import them."""
