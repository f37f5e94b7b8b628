"""Benchmarks of a policy. Answers and judgments are artifacts apart, so that another judge asks for no answer again."""
