"""Resume a run of Weights & Biases: the same folder with the same config continues the same run."""

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def unfinished_run(folder: Path, config: Mapping[str, Any]) -> Path:
    """Return the file that keeps the id of the run until it has finished: one per folder and config."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:12]
    return folder / "wandb" / f"unfinished-{digest}"


def identity(unfinished: Path) -> dict[str, Any]:
    """Return arguments of `wandb.init` that resume the run in the file `unfinished`, which is created for a new run.

    Those of the environment win: an agent or a user has set them.
    """
    resume = {} if "WANDB_RESUME" in os.environ else {"resume": "allow"}
    if "WANDB_RUN_ID" in os.environ:
        return resume
    if not unfinished.exists():
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(secrets.token_hex(4))
    return {**resume, "id": unfinished.read_text()}
