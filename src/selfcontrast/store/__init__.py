"""Content-addressed artifacts: computed once, published atomically, verified when read.

An artifact is a folder `ROOT/STAGE/KEY/` of immutable files with a `manifest.json`. Its key is a hash of the stage, the
stage's version, its settings, and the keys of its inputs. See docs/store.md; `selfcontrast store` manages a store.
"""

from selfcontrast.store.artifact import MANIFEST, RESUME, Artifact, canonical, verify
from selfcontrast.store.settings import NOT_IN_KEY, fields_of, settings_of
from selfcontrast.store.stage import Compute, Stage
from selfcontrast.store.store import Store

__all__ = [
    "MANIFEST",
    "NOT_IN_KEY",
    "RESUME",
    "Artifact",
    "Compute",
    "Stage",
    "Store",
    "canonical",
    "fields_of",
    "settings_of",
    "verify",
]
