"""What is kept on disk, whole or not at all: results and checkpoints, and what names classes there. Fits import it."""
