"""Policies: loading and saving, shared-prompt attention, response log-probabilities."""
