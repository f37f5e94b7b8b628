"""Resume a run of Weights & Biases: the same folder with the same config continues the same run."""

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def unfinished_run(folder: Path, config: Mapping[str, Any]) -> Path:
    """Return the file with the id of an unfinished run: one per folder and config."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:12]
    return folder / "wandb" / f"unfinished-{digest}"


def resume_arguments(unfinished: Path) -> dict[str, Any]:
    """Return arguments of `wandb.init` that resume the run in the file `unfinished`, or start a new run and create it.

    Environment variables, set by an agent or the user, override them.
    """
    resume = {} if "WANDB_RESUME" in os.environ else {"resume": "allow"}
    if "WANDB_RUN_ID" in os.environ:
        return resume
    if not unfinished.exists():
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(secrets.token_hex(4))
    return {**resume, "id": unfinished.read_text()}
