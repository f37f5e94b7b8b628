"""Benchmarks of a policy. Each is an artifact of its own, so that another judge asks for no answer again."""
