"""Name the sweep of a job, and flatten the config for W&B's sweeps."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

NO_SETTINGS = ("name", "output")  # config keys that differ between any two runs


def flat_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config for W&B, without the keys that differ between any two runs.

    If a sweep chooses an option of a group (objective=hinge), W&B locks the key to that word and would drop the group's
    settings. So they are added as flat keys (objective.beta).
    """
    settings = {key: value for key, value in config.items() if key not in NO_SETTINGS}
    for key in _swept():
        if isinstance(settings.get(key), Mapping):
            settings |= {f"{key}.{name}": value for name, value in settings.pop(key).items()}
    return settings


def _swept() -> list[str]:
    """Return the parameters of the sweep whose agent runs this job."""
    file = os.environ.get("WANDB_SWEEP_PARAM_PATH")
    return list(yaml.safe_load(Path(file).read_text())) if file and Path(file).exists() else []


def sweep_name() -> str | None:
    """Return W&B's id of the job's sweep, or else the name of the multirun's folder."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if sweep_id := os.environ.get("WANDB_SWEEP_ID"):
        return sweep_id
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        return Path(HydraConfig.get().sweep.dir).name
    return None
