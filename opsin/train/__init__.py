"""Recipes, stages, optimiser, loss and the training loop."""
