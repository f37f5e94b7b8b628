"""Real text that a small model answers often, with an exact verifier: the second largest number of a GSM8K problem."""
