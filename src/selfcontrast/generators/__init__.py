"""Generators: from prompts to candidates."""
