"""Benchmarks: `python -m bench.NAME`. Each prints what anyone can compare on their own machine."""
