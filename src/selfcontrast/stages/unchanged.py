"""The check that files which a stage reads are the ones that its key names."""

from collections.abc import Mapping
from typing import Any

from selfcontrast.errors import UserError


def check_unchanged(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Raise `UserError` if a file that these settings name has been changed while the stage read it."""
    if before != after:
        raise UserError(
            f"{name}: one of its files has changed while this job was reading it; run the same command again"
        )
