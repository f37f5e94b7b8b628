"""Attention over packed groups, in three ways that compute the same; `choice` says which one runs where."""
