"""Measurements behind every number in the README and docs. ``python -m benchmarks.speed --help``."""
