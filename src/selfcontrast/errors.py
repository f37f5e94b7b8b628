"""What a user can mend: one clear line, with the fix in it, and no traceback."""

import logging


class UserError(Exception):
    """A wrong setting, file or environment. `train.py` prints its text alone and exits with 1."""


FAILED = "error.txt"  # in the folder of a sweep's job that failed: why, in one line


class PrintableFormatter(logging.Formatter):
    """Formats records without the escape codes that data, models and servers may have put into them; lines stay."""

    def format(self, record: logging.LogRecord) -> str:
        return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in super().format(record))


def printable(text: str) -> str:
    """One line that a terminal shows as it is: without escape codes, which others may have put into their texts."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
