"""Errors that a user can fix: one clear line that contains the fix, without a traceback."""

import logging


class UserError(Exception):
    """Raised for a wrong setting, file or environment. `train.py` prints only its text and exits with 1."""


FAILED = "error.txt"  # file in the folder of a failed sweep job, with the reason in one line


class PrintableFormatter(logging.Formatter):
    """Format log records without escape codes, which data, models or servers may contain. Line breaks stay."""

    def format(self, record: logging.LogRecord) -> str:
        return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in super().format(record))


def printable(text: str) -> str:
    """Return the text as one line without escape codes, which data or servers may contain."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
