"""Evaluate policies: sample answers, judge them, run benchmarks, and compute scores with intervals."""
