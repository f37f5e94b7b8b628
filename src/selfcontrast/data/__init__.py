"""Prompts and targets: sources, chat rendering, and the built-in data with its verifier."""
