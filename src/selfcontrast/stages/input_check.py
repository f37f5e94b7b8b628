"""Check that the files a stage reads still match its key."""

from collections.abc import Mapping
from typing import Any

from selfcontrast.errors import UserError


def check_unchanged(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Raise `UserError` if a file named by these settings changed while the stage was reading it."""
    if before != after:
        raise UserError(f"{name}: one of its files changed while this job was reading it. Run the same command again.")
