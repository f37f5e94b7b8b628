"""Benchmarks of a policy. Answers and judgments are separate artifacts, so that another judge reuses the answers."""
