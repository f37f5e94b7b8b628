"""Implementations of attention over packed groups. They compute the same; `choice` selects one."""
