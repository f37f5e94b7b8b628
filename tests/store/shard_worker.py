"""Request an artifact that takes a while, and log the number of each computed shard.

python shard_worker.py ROOT LOG

This module imports nothing heavy, because the tests start it in many processes.
"""

import hashlib
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfcontrast.store import RESUME, Stage, Store

SHARDS = 30
SECONDS = 0.02  # per shard


def shard(number: int) -> bytes:
    """Return bytes that depend only on the shard's number."""
    return hashlib.sha256(str(number).encode()).digest() * 100


def get_artifact(root: Path, log_file: Path) -> None:
    def compute(folder: Path) -> Mapping[str, Any]:
        shards = folder / RESUME
        shards.mkdir(exist_ok=True)
        for number in range(SHARDS):
            file = shards / f"{number:02}"
            if not file.exists():
                with open(log_file, "a") as log:
                    log.write(f"{number}\n")
                time.sleep(SECONDS)
                partial = file.with_suffix(".writing")
                partial.write_bytes(shard(number))
                os.replace(partial, file)
        with open(folder / "whole", "wb") as file_of_all:
            for number in range(SHARDS):
                file_of_all.write((shards / f"{number:02}").read_bytes())
        return {"shards": SHARDS}

    Store(root).get(Stage("stage", 1, {}, {}, compute))


if __name__ == "__main__":
    get_artifact(Path(sys.argv[1]), Path(sys.argv[2]))
