"""Encoders, connectors, fusion, the decoder loop and generation."""
