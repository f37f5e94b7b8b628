"""Implementations of attention over packed groups. All give the same result up to rounding; `choice` selects one."""
