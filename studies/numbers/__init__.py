"""Build data of real text that a small model often answers right, with an exact verifier: numbers in GSM8K problems."""
