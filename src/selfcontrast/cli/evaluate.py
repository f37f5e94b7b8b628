"""Measure any model as a job measures its policy."""

import sys

from omegaconf import DictConfig

from selfcontrast.cli.hydra_app import errors_in_one_line, log, run_hydra, settings
from selfcontrast.constrained import quoted
from selfcontrast.environment import set_environment
from selfcontrast.files import CONF
from selfcontrast.preemption import end_on_signal
from selfcontrast.store.full import explain_disk_errors


def evaluate_model(cfg: DictConfig) -> None:
    config = settings(cfg)
    log.info("checking the settings; output in %s", cfg.output)
    from selfcontrast.config import configure

    parts = configure(cfg)
    from selfcontrast.evaluate import evaluate  # slow to import, so settings are checked first
    from selfcontrast.report.evaluated import print_evaluated

    with explain_disk_errors(parts.output, "output"):
        print_evaluated(evaluate(parts, config), parts.output)


def overrides(arguments: list[str]) -> list[str]:
    """Translate `model=FOLDER` for Hydra: `model=hf model.path=FOLDER`."""
    translated = ["model=hf"]
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "model" and value != "hf":
            translated.append(f"model.path={quoted(value)}")
        elif argument != "model=hf":
            translated.append(argument)
    return translated


def main() -> None:
    """Run `evaluate_model` with Hydra."""
    set_environment()
    sys.argv[1:] = overrides(sys.argv[1:])
    with end_on_signal():
        run_hydra(errors_in_one_line(evaluate_model), str(CONF), "config")
