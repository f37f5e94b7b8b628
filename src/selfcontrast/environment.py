"""Set environment variables that libraries read when they are imported."""

import os
import sys
import time

BEGUN = "SELFCONTRAST_BEGUN"  # start time of the command, for all processes that it starts


def set_environment() -> None:
    """Configure libraries before they are imported. Variables that the user has set stay.

    It sets variables instead of calling the libraries, so that no library is imported only to be configured.
    """
    os.environ.setdefault(BEGUN, str(time.time()))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if "OMP_WAIT_POLICY" not in os.environ:
        # Let waiting OpenMP threads spin only briefly. If other processes are busy, spinning threads slow each other
        # down (benchmarks/RESULTS.md).
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # no progress bars in a log file
