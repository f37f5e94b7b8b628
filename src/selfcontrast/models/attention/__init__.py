"""Implementations of attention over packed groups. All give the same result; `choice` selects one."""
