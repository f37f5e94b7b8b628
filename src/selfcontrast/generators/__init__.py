"""Generators return candidates for prompts."""
