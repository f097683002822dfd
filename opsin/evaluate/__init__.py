"""Metrics and the questions a model is measured with."""
