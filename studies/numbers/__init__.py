"""Build data that a small model can learn from, with real text and an exact verifier: numbers in GSM8K problems."""
