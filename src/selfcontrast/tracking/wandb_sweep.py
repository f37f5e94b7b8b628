"""Name the sweep that a job belongs to, and give W&B the config in the form that a sweep needs."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

NO_SETTINGS = ("name", "output")  # of the config: what differs between any two runs


def flat_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config as W&B is given it: without what differs between any two runs.

    A group that a sweep chooses (objective=hinge) is locked to that word, and W&B would drop the group's settings:
    they go beside it, flat (objective.beta).
    """
    own = {key: value for key, value in config.items() if key not in NO_SETTINGS}
    for key in _swept():
        if isinstance(own.get(key), Mapping):
            own |= {f"{key}.{name}": value for name, value in own.pop(key).items()}
    return own


def _swept() -> list[str]:
    """The parameters of the sweep whose agent runs this job."""
    file = os.environ.get("WANDB_SWEEP_PARAM_PATH")
    return list(yaml.safe_load(Path(file).read_text())) if file and Path(file).exists() else []


def sweep_name() -> str | None:
    """Return W&B's id of the sweep that this job belongs to, else the name of the folder of the multirun."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if own := os.environ.get("WANDB_SWEEP_ID"):
        return own
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        return Path(HydraConfig.get().sweep.dir).name
    return None
