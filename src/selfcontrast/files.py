"""Locate the folders `conf` and `evaluation`: next to `src` in a checkout, inside the package in a wheel."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _folder(name: str) -> Path:
    installed = _PACKAGE / "_files" / name
    return installed if installed.is_dir() else _PACKAGE.parents[1] / name


CONF = _folder("conf")
EVALUATION = _folder("evaluation")
