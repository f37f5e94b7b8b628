"""Measure any model as a job measures its policies."""

import sys

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from selfcontrast.cli.hydra_app import FULL_ERROR, log, one_line, run_hydra, settings
from selfcontrast.constrained import quoted
from selfcontrast.environment import set_environment
from selfcontrast.errors import UserError
from selfcontrast.files import CONF
from selfcontrast.preemption import ending
from selfcontrast.store.full import explained


def job(cfg: DictConfig) -> None:
    try:
        evaluate_model(cfg)
    except (UserError, OmegaConfBaseException) as error:
        if FULL_ERROR:
            raise
        sys.exit(one_line(error))  # an exception would make Hydra print a line of its own


def evaluate_model(cfg: DictConfig) -> None:
    config = settings(cfg)
    log.info("checking the settings; output in %s", cfg.output)
    from selfcontrast.config import configure

    parts = configure(cfg)
    from selfcontrast.evaluate import evaluate  # slow to import: a wrong setting is told first
    from selfcontrast.report.evaluated import print_evaluated

    with explained(parts.output, "output"):
        print_evaluated(evaluate(parts, config), parts.output)


def overrides(arguments: list[str]) -> list[str]:
    """`model=FOLDER` as Hydra takes it: the Hugging Face model at that path."""
    own = ["model=hf"]
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "model" and value != "hf":
            own.append(f"model.path={quoted(value)}")
        elif argument != "model=hf":
            own.append(argument)
    return own


def main() -> None:
    """Hydra around `job`."""
    set_environment()
    sys.argv[1:] = overrides(sys.argv[1:])
    with ending():
        run_hydra(job, str(CONF), "config")
