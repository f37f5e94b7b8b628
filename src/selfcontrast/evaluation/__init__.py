"""Scores with intervals: decoding, judges, benchmarks, statistics."""
