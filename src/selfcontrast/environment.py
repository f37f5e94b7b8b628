"""Environment variables that the libraries of a job read when they are imported."""

import os
import sys
import time

BEGUN = "SELFCONTRAST_BEGUN"  # when the command began, for all processes that it starts


def set_environment() -> None:
    """Quiet the libraries, before any of them is imported; what the user has set stays.

    Variables and not function calls, so that a job need not import a library only to make it quiet.
    """
    os.environ.setdefault(BEGUN, str(time.time()))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # no bars, of any library, in a log file
