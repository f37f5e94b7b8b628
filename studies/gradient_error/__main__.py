"""Measures the error of the objective's gradient against the number of negatives and prompts.

python -m studies.gradient_error [sft.…=…] [theory.prompts=…] …
"""

import sys
from pathlib import Path

from omegaconf import DictConfig

from selfcontrast.cli.hydra_app import errors_in_one_line, log, run_hydra, settings
from selfcontrast.environment import set_environment
from selfcontrast.files import CONF
from selfcontrast.preemption import ending
from selfcontrast.store.full import explained


def measure_theory(cfg: DictConfig) -> None:
    config = settings(cfg)
    log.info("checking the settings; output in %s", cfg.output)
    from selfcontrast.config import build, configure

    measured = build(cfg.theory, "theory")
    parts = configure(cfg)
    from studies.gradient_error.experiment import run
    from studies.gradient_error.report import (
        print_theory,
        write_theory,
    )  # slow to import, so mistakes are reported first

    with explained(parts.output, "output"):
        theory = run(parts, measured, config)
        write_theory(theory, parts.output)
    print_theory(theory, parts.output)


def main() -> None:
    """Hydra around `measure_theory`."""
    set_environment()
    with ending():
        sys.argv[1:1] = ["--config-dir", str(Path(__file__).parent)]
        run_hydra(errors_in_one_line(measure_theory), str(CONF), "gradient_error")


if __name__ == "__main__":
    main()
