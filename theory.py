"""Measures the error of the objective's gradient against the number of negatives and prompts.

python theory.py [sft.…=…] [theory.prompts=…] …
"""

import os
import sys

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from train import CONF, FULL_ERROR, log, one_line

from selfcontrast.environment import set_environment
from selfcontrast.errors import UserError


def job(cfg: DictConfig) -> None:
    try:
        measure_theory(cfg)
    except (UserError, OmegaConfBaseException) as error:
        if FULL_ERROR:
            raise
        sys.exit(one_line(error))  # an exception would make Hydra print a line of its own


def measure_theory(cfg: DictConfig) -> None:
    log.info("checking the settings; output in %s", cfg.output)
    from selfcontrast.config import build, configure

    settings = build(cfg.theory, "theory")
    parts = configure(cfg)
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    from selfcontrast.report.theory import print_theory, write_theory  # slow to import: a wrong setting is told first
    from selfcontrast.theory.experiment import run

    theory = run(parts, settings, {str(key): value for key, value in config.items()})
    write_theory(theory, parts.output)
    print_theory(theory, parts.output)


def main() -> None:
    """Hydra around `job`."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # lets errors through to here
    set_environment()
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="theory")(job)()
    except (HydraException, OmegaConfBaseException) as error:
        if FULL_ERROR:
            raise
        sys.exit(one_line(error))
    except KeyboardInterrupt:
        sys.exit("interrupted: finished stages are kept; the same command goes on from there")


if __name__ == "__main__":
    main()
