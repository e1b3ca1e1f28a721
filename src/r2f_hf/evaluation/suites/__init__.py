"""Benchmarks: their splits, and what is computed on them."""
