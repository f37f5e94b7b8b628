"""Jobs from Python: compose a config, see what it would do, run it."""

from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from selfcontrast.credentials import refuse_credentials
from selfcontrast.environment import set_environment
from selfcontrast.files import CONF
from selfcontrast.planning.plan import DataReader, Planned
from selfcontrast.planning.plan import plan as plan_of
from selfcontrast.results import Result


def compose(*overrides: str, output: str | Path) -> DictConfig:
    """The config of a job, as the command line composes it from the same words: `compose("negatives=4", output="out")`.

    Args:
        output: the folder for its report, config and results.
    """
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg: DictConfig = hydra_compose("config", [*overrides, f"output='{output}'"])
    return cfg


def plan(cfg: DictConfig) -> Planned:
    """The stages of a job, and which of them the store has. Nothing is computed. Raises `UserError`."""
    return plan_of(cfg, DataReader())


def run(cfg: DictConfig) -> Result:
    """Runs or recalls all stages of a job, and writes its report; returns what that says. Raises `UserError`.

    The current process keeps its signal handlers: a job that is killed goes on where it was when it is run again.
    """
    set_environment()
    from selfcontrast.config import configure
    from selfcontrast.pipeline import run as run_parts

    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    refuse_credentials(config)
    parts = configure(cfg)
    parts.output.mkdir(parents=True, exist_ok=True)
    result = run_parts(parts, {str(key): value for key, value in config.items()})
    assert result is not None, "on one node"
    return result
