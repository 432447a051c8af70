"""What is asked of a finished fit: uncertainty, choice between models, prediction. Checks, plots and doors import it."""
