"""Resume a run of Weights & Biases: the same folder with the same config continues the same run."""

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def run_id_file(folder: Path, config: Mapping[str, Any]) -> Path:
    """Return the file that holds the id of an unfinished run: one file per folder and config."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:12]
    return folder / "wandb" / f"unfinished-{digest}"


def resume_arguments(id_file: Path) -> dict[str, Any]:
    """Return arguments for `wandb.init` that resume the run whose id is in `id_file`.

    A missing file is created with a new id. Environment variables, set by an agent or the user, override the arguments.
    """
    resume = {} if "WANDB_RESUME" in os.environ else {"resume": "allow"}
    if "WANDB_RUN_ID" in os.environ:
        return resume
    if not id_file.exists():
        id_file.parent.mkdir(parents=True, exist_ok=True)
        id_file.write_text(secrets.token_hex(4))
    return {**resume, "id": id_file.read_text()}
