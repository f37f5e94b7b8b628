"""Puts `tests/` on the path (test modules import `tiny` and `jobs`), and takes hypothesis' clock away."""

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
