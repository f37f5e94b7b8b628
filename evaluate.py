"""Measures any model as train.py measures its policies.

python evaluate.py model=FOLDER [data=…] [evaluation.…=…]
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
        evaluate_model(cfg)
    except (UserError, OmegaConfBaseException) as error:
        if FULL_ERROR:
            raise
        sys.exit(one_line(error))  # an exception would make Hydra print a line of its own


def evaluate_model(cfg: DictConfig) -> None:
    log.info("checking the settings; output in %s", cfg.output)
    from selfcontrast.config import configure

    parts = configure(cfg)
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    from selfcontrast.evaluate import evaluate, print_evaluated  # slow to import: a wrong setting is told first

    print_evaluated(evaluate(parts, {str(key): value for key, value in config.items()}), parts.output)


def overrides(arguments: list[str]) -> list[str]:
    """`model=FOLDER` as Hydra takes it: the Hugging Face model at that path."""
    own = ["model=hf"]
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "model" and value != "hf":
            own.append(f"model.path='{value}'")
        elif argument != "model=hf":
            own.append(argument)
    return own


def main() -> None:
    """Hydra around `job`."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # lets errors through to here
    set_environment()
    sys.argv[1:] = overrides(sys.argv[1:])
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(job)()
    except (HydraException, OmegaConfBaseException) as error:
        if FULL_ERROR:
            raise
        sys.exit(one_line(error))
    except KeyboardInterrupt:
        sys.exit("interrupted: finished stages are kept; the same command goes on from there")


if __name__ == "__main__":
    main()
