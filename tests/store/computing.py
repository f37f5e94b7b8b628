"""Provide functions that compute artifacts, for the tests of the store."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def write(text: str = "content") -> Callable[[Path], dict[str, Any]]:
    """Return a function that writes one file into a subfolder and returns the length of `text` as its summary."""

    def compute(folder: Path) -> dict[str, Any]:
        (folder / "sub").mkdir(exist_ok=True)
        (folder / "sub" / "file.txt").write_text(text)
        return {"length": len(text)}

    return compute


def never(folder: Path) -> Mapping[str, Any] | None:
    raise AssertionError(f"computed again: {folder}")
