"""The only entry point: compose the config, check it, run the pipeline, print what came out.

python train.py --help
"""

import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from selfcontrast.constrained import check_text
from selfcontrast.credentials import refuse_credentials, secrets_in
from selfcontrast.environment import set_environment
from selfcontrast.errors import FAILED, UserError, printable
from selfcontrast.gpus import own_gpus
from selfcontrast.preemption import Stopped, end_when_told, ending, stays
from selfcontrast.store.full import explained

log = logging.getLogger("selfcontrast")

CONF = Path(__file__).parent / "conf"
ONE_RUN = "-m under WANDB_RUN_ID would give several jobs one W&B run: unset it, or leave out -m"
FULL_ERROR = os.environ.get("HYDRA_FULL_ERROR") == "1"  # what the user asked for, before main() sets it


def job(cfg: DictConfig) -> float | None:
    """One job. Returns the config's `target_metric`, which is what a sweeper optimises."""
    multirun = HydraConfig.get().mode == RunMode.MULTIRUN
    failed = Path(HydraConfig.get().runtime.output_dir) / FAILED
    set_environment()  # in a launcher's worker, too
    try:
        if multirun and "WANDB_RUN_ID" in os.environ:
            raise UserError(ONE_RUN)
        if str(HydraConfig.get().launcher._target_).endswith("JoblibLauncher"):
            end_when_told()  # in the worker, too
        failed.unlink(missing_ok=True)
        return run_job(cfg)
    except Stopped:
        if not multirun:
            raise
        stays()
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


def settings(cfg: DictConfig) -> dict[str, Any]:
    """The settings as they are recorded. Raises `UserError` where one of them holds a credential."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    refuse_credentials(OmegaConf.to_container(cfg), folder)  # as Hydra has written them
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    refuse_credentials(config, folder)
    return {str(key): value for key, value in config.items()}


def one_line(error: Exception) -> str:
    """The error without a traceback, for what a user can mend."""
    if unknown := re.match(r"Could not override '((\w+)[\w.]*)'", str(error)):
        key, group = unknown.groups()
        part = f" -p {group}" if (CONF / group).is_dir() else ""
        return f"error: {key}: no such setting; python train.py --cfg job{part} shows them all"
    return "error: " + printable(str(error).split("\n    full_key")[0])


def main() -> None:
    """Hydra around `job`."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # lets errors through to here
    set_environment()
    if "WANDB_RUN_ID" in os.environ and {"-m", "--multirun"} & set(sys.argv):
        sys.exit(f"error: {ONE_RUN}")
    with ending():
        try:
            run_hydra(job, "conf", "config")
        finally:
            from selfcontrast.report.hook import finish_sweep

            try:
                finish_sweep()  # of a multirun, whether or not a job failed
            except UserError as error:
                print(one_line(error), file=sys.stderr)


def run_hydra(task: Callable[[DictConfig], Any], folder: str, name: str) -> None:
    """Run a task with Hydra's command line. What a user can mend ends the process with one line and exit code 1."""
    begun = False
    for argument in sys.argv[1:]:  # before Hydra writes them down
        key = argument.partition("=")[0]
        try:
            check_text(argument, key)
        except UserError as error:
            sys.exit(one_line(error))
        if secrets_in(argument):
            sys.exit(f"error: {key}: a URL with a credential in it, and settings are recorded: use the environment")

    def begin(cfg: DictConfig) -> Any:
        nonlocal begun
        begun = True
        return task(cfg)

    try:
        hydra.main(version_base="1.3", config_path=folder, config_name=name)(begin)()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if FULL_ERROR:
            raise
        sys.exit(one_line(error))
    except OSError as error:
        if FULL_ERROR or begun:
            raise
        sys.exit(one_line(UserError(f"the output folder cannot be used: {error}; choose another, hydra.run.dir=…")))
    except Exception as error:  # Hydra's own code is no match for some overrides, such as encoder=[null]
        if FULL_ERROR or begun:
            raise
        sys.exit(one_line(UserError(f"these settings cannot be composed: {error}; python {sys.argv[0]} --help")))


if __name__ == "__main__":
    main()
