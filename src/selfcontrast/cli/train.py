"""Compose the config, check it, run the pipeline, print what came out."""

import os
import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from selfcontrast.cli.hydra_app import FULL_ERROR, log, one_line, run_hydra, settings
from selfcontrast.environment import set_environment
from selfcontrast.errors import FAILED, UserError
from selfcontrast.files import CONF
from selfcontrast.gpus import own_gpus
from selfcontrast.preemption import EarlyStop, cancel_deadline, ending, install_handlers
from selfcontrast.store.full import explained

ONE_RUN = "-m under WANDB_RUN_ID would give several jobs one W&B run: unset it, or leave out -m"


def job(cfg: DictConfig) -> float | None:
    """One job. Returns the config's `target_metric`, which is what a sweeper optimises."""
    multirun = HydraConfig.get().mode == RunMode.MULTIRUN
    failed = Path(HydraConfig.get().runtime.output_dir) / FAILED
    set_environment()  # in a launcher's worker, too
    try:
        if multirun and "WANDB_RUN_ID" in os.environ:
            raise UserError(ONE_RUN)
        if str(HydraConfig.get().launcher._target_).endswith("JoblibLauncher"):
            install_handlers()  # in the worker, too
        failed.unlink(missing_ok=True)
        return run_job(cfg)
    except EarlyStop:
        if not multirun:
            raise
        cancel_deadline()
        failed.write_text("stopped early, on W&B's page or by a sweep", encoding="utf-8")
        raise UserError("stopped early; the other jobs go on") from None
    except Exception as error:
        if multirun:
            line = one_line(error).removeprefix("error: ")
            failed.write_text(line, encoding="utf-8")  # what the summary of the sweep says of it
        if FULL_ERROR or multirun or not isinstance(error, (UserError, OmegaConfBaseException)):
            raise  # in a sweep the later jobs still run, and Hydra says which one failed
        sys.exit(one_line(error))  # an exception would make Hydra print a line of its own


def run_job(cfg: DictConfig) -> float | None:
    config = settings(cfg)  # first: it masks credentials in what Hydra has written
    with own_gpus(cfg.hardware):
        return run_here(cfg, config)


def run_here(cfg: DictConfig, config: dict[str, Any]) -> float | None:
    log.info("%s: checking the settings; output in %s", cfg.name, cfg.output)
    from selfcontrast.config import configure

    parts = configure(cfg)
    # Only now: torch, transformers and Lightning take seconds to import, and a wrong setting should be told at once.
    from selfcontrast.pipeline import run
    from selfcontrast.report.terminal import print_result

    with explained(parts.output, "output"):
        result = run(parts, config)
    if result is None:  # another node of the job has it
        return None
    print_result(result, parts.output)
    return result.value


def main() -> None:
    """Hydra around `job`."""
    set_environment()
    if "WANDB_RUN_ID" in os.environ and {"-m", "--multirun"} & set(sys.argv):
        sys.exit(f"error: {ONE_RUN}")
    with ending():
        try:
            run_hydra(job, str(CONF), "config")
        finally:
            from selfcontrast.report.hook import finish_sweep

            try:
                finish_sweep()  # of a multirun, whether or not a job failed
            except UserError as error:
                print(one_line(error), file=sys.stderr)
