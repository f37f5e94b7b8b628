"""Measures the error of the objective's gradient against the number of negatives and prompts.

python -m studies.gradient_error [sft.…=…] [theory.prompts=…] …
"""

import sys
from pathlib import Path

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from selfcontrast.cli.hydra_app import FULL_ERROR, log, one_line, run_hydra, settings
from selfcontrast.environment import set_environment
from selfcontrast.errors import UserError
from selfcontrast.files import CONF
from selfcontrast.preemption import ending
from selfcontrast.store.full import explained


def job(cfg: DictConfig) -> None:
    try:
        measure_theory(cfg)
    except (UserError, OmegaConfBaseException) as error:
        if FULL_ERROR:
            raise
        sys.exit(one_line(error))  # an exception would make Hydra print a line of its own


def measure_theory(cfg: DictConfig) -> None:
    config = settings(cfg)
    log.info("checking the settings; output in %s", cfg.output)
    from selfcontrast.config import build, configure

    measured = build(cfg.theory, "theory")
    parts = configure(cfg)
    from studies.gradient_error.experiment import run
    from studies.gradient_error.report import print_theory, write_theory  # slow to import: a mistake is told first

    with explained(parts.output, "output"):
        theory = run(parts, measured, config)
        write_theory(theory, parts.output)
    print_theory(theory, parts.output)


def main() -> None:
    """Hydra around `job`."""
    set_environment()
    with ending():
        sys.argv[1:1] = ["--config-dir", str(Path(__file__).parent)]
        run_hydra(job, str(CONF), "gradient_error")


if __name__ == "__main__":
    main()
