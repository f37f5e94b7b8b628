"""Run jobs from Python: compose a config, plan the job, run it."""

import time
from dataclasses import replace
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from selfcontrast.constrained import quoted
from selfcontrast.credentials import refuse_credentials
from selfcontrast.deprecated import current_arguments, current_config
from selfcontrast.environment import set_environment
from selfcontrast.files import CONF
from selfcontrast.planning.plan import DataReader, Planned
from selfcontrast.planning.plan import plan as plan_of
from selfcontrast.results import Result
from selfcontrast.store.full import explain_disk_errors


def compose(*overrides: str, output: str | Path) -> DictConfig:
    """Compose a job's config from command-line overrides: `compose("negatives=4", output="out")`.

    Args:
        output: folder for the report, the config and the results of the job.

    Raises:
        HydraException: if a setting or a choice does not exist.
        UserError: if a setting is given by both its old and its new name.
    """
    arguments = current_arguments(overrides)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg: DictConfig = hydra_compose("config", [*arguments, f"output={quoted(str(output))}"])
    return current_config(cfg, arguments)


def plan(cfg: DictConfig) -> Planned:
    """Return the stages of a job and which are cached. Compute nothing. Raise `UserError` for a wrong setting."""
    return plan_of(current_config(cfg), DataReader())


def run(cfg: DictConfig) -> Result | None:
    """Run a job and write its report. Cached stages are not computed again.

    Return the report's content; None on every node except the job's first. Each call recomputes the stages in
    `recompute`.

    Raises:
        UserError: if a setting, a file or the environment is wrong.
    """
    set_environment()
    from selfcontrast.config import configure
    from selfcontrast.pipeline import run as run_parts

    cfg = current_config(cfg)
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    refuse_credentials(config)
    parts = replace(configure(cfg), begun=time.time())
    with explain_disk_errors(parts.output, "output"):
        parts.output.mkdir(parents=True, exist_ok=True)
        return run_parts(parts, {str(key): value for key, value in config.items()})
