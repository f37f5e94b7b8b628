"""The only entry point: compose the config, check it, run the pipeline, print what came out.

python train.py --help
"""

import os
import sys

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from selfcontrast.errors import UserError


def job(cfg: DictConfig) -> float | None:
    """One job. Returns the config's `target_metric`, which is what a sweeper optimises."""
    import transformers

    from selfcontrast.config import configure
    from selfcontrast.pipeline import run
    from selfcontrast.report import print_result

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    parts = configure(cfg)
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    result = run(parts, {str(key): value for key, value in config.items()})
    print_result(result, parts.output)
    return result.value


def main() -> None:
    """Hydra around `job`, with one line instead of a traceback for what a user can mend."""
    full_error = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # lets errors through to here
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # no bars, of any library, in a log file
    try:
        hydra.main(version_base="1.3", config_path="conf", config_name="config")(job)()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if full_error:
            raise
        text = " ".join(str(error).split("\n    full_key")[0].split())
        sys.exit(f"error: {text}")
    except KeyboardInterrupt:
        sys.exit("interrupted: finished stages are kept; the same command goes on from there")
    finally:
        from selfcontrast.report.hook import finish_sweep

        finish_sweep()  # of a multirun, whether or not a job failed


if __name__ == "__main__":
    main()
