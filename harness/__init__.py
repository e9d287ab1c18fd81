"""Benchmarking harness."""
