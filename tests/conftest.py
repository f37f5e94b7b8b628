"""Puts `tests/` on the path (test modules import `tiny` and `jobs`), and takes hypothesis' clock away."""

import os

from hypothesis import settings

# In CI the same examples every time: new ones are looked for where somebody can look at what was found.
settings.register_profile("untimed", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("untimed")
