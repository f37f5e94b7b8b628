"""Measure the error of the objective's gradient against the number of negatives and prompts.

python -m studies.gradient_error [sft.…=…] [theory.prompts=…] …
"""

import sys
from pathlib import Path

from omegaconf import DictConfig

from selfcontrast.cli.hydra_app import errors_in_one_line, log, run_hydra, settings
from selfcontrast.environment import set_environment
from selfcontrast.files import CONF
from selfcontrast.preemption import end_on_signal
from selfcontrast.store.full import explain_disk_errors


def measure_theory(cfg: DictConfig) -> None:
    config = settings(cfg)
    log.info("checking the settings; output in %s", cfg.output)
    from selfcontrast.config import build, configure

    theory_settings = build(cfg.theory, "theory")
    parts = configure(cfg)
    from studies.gradient_error.experiment import run
    from studies.gradient_error.report import print_theory, write_theory  # slow to import: report mistakes first

    with explain_disk_errors(parts.output, "output"):
        theory = run(parts, theory_settings, config)
        write_theory(theory, parts.output)
    print_theory(theory, parts.output)


def main() -> None:
    """Run `measure_theory` through Hydra."""
    set_environment()
    with end_on_signal():
        sys.argv[1:1] = ["--config-dir", str(Path(__file__).parent)]
        run_hydra(errors_in_one_line(measure_theory), str(CONF), "gradient_error")


if __name__ == "__main__":
    main()
