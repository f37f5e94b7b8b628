"""Compose the config, check it, run the pipeline and print the result."""

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
from selfcontrast.gpus import reserved_gpus
from selfcontrast.preemption import EarlyStop, cancel_deadline, end_on_signal, install_handlers
from selfcontrast.store.full import explain_disk_errors

ONE_RUN = "-m with WANDB_RUN_ID would log several jobs to one W&B run. Unset WANDB_RUN_ID, or omit -m."


def job(cfg: DictConfig) -> float | None:
    """Run one job. Return the config's `target_metric`, which a sweeper optimises."""
    multirun = HydraConfig.get().mode == RunMode.MULTIRUN
    error_file = Path(HydraConfig.get().runtime.output_dir) / FAILED
    set_environment()  # in a launcher's worker, too
    try:
        if multirun and "WANDB_RUN_ID" in os.environ:
            raise UserError(ONE_RUN)
        if str(HydraConfig.get().launcher._target_).endswith("JoblibLauncher"):
            install_handlers()  # in the worker, too
        error_file.unlink(missing_ok=True)
        return run_job(cfg)
    except EarlyStop:
        if not multirun:
            raise
        cancel_deadline()
        error_file.write_text("stopped early, on W&B's page or by a sweep", encoding="utf-8")
        raise UserError("stopped early; the other jobs continue") from None
    except Exception as error:
        if multirun:
            line = one_line(error).removeprefix("error: ")
            error_file.write_text(line, encoding="utf-8")  # shown in the sweep's summary
        if FULL_ERROR or multirun or not isinstance(error, (UserError, OmegaConfBaseException)):
            raise  # in a sweep the other jobs still run, and Hydra names the failed job
        sys.exit(one_line(error))  # an exception would make Hydra print its own line


def run_job(cfg: DictConfig) -> float | None:
    config = settings(cfg)  # first, because it masks credentials in Hydra's files
    with reserved_gpus(cfg.hardware):
        return run_here(cfg, config)


def run_here(cfg: DictConfig, config: dict[str, Any]) -> float | None:
    log.info("checking the settings; output in %s", cfg.output)
    from selfcontrast.config import configure

    parts = configure(cfg)
    # Imported after the checks: torch, transformers and Lightning take seconds, and mistakes should show at once.
    from selfcontrast.pipeline import run
    from selfcontrast.report.terminal import print_result

    with explain_disk_errors(parts.output, "output"):
        result = run(parts, config)
    if result is None:  # another node of the job has the result
        return None
    print_result(result, parts.output)
    return result.value


def main() -> None:
    """Run `job` with Hydra."""
    set_environment()
    if "WANDB_RUN_ID" in os.environ and {"-m", "--multirun"} & set(sys.argv):
        sys.exit(f"error: {ONE_RUN}")
    with end_on_signal():
        try:
            run_hydra(job, str(CONF), "config")
        finally:
            from selfcontrast.report.hook import finish_sweep

            try:
                finish_sweep()  # reports a multirun, even if a job failed
            except UserError as error:
                print(one_line(error), file=sys.stderr)
