"""What the commands that Hydra composes have in common: their errors are one line, and no credential is recorded."""

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
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from selfcontrast.constrained import check_text
from selfcontrast.credentials import refuse_credentials, secrets_in
from selfcontrast.deprecated import RENAMED_GROUPS, current_arguments, current_config
from selfcontrast.errors import UserError, printable
from selfcontrast.files import CONF

log = logging.getLogger("selfcontrast")

IN_JOB = "in_job"  # marks an error of a job
FULL_ERROR = os.environ.get("HYDRA_FULL_ERROR") == "1"  # what the user asked for, before `run_hydra` sets it


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
    if (old := re.search(r"Could not override '(\w+)", str(error))) and (new := RENAMED_GROUPS.get(old[1])):
        return f"error: the group {old[1]} is now {new}: write /{new} in the defaults list of your file"
    if unknown := re.match(r"Could not override '((\w+)[\w.]*)'", str(error)):
        key, group = unknown.groups()
        part = f" -p {group}" if (CONF / group).is_dir() else ""
        return f"error: {key}: no such setting; {command()} --cfg job{part} shows them all"
    return "error: " + printable(str(error).split("\n    full_key")[0])


def command() -> str:
    """What starts a job here: the installed command, or a checkout's script."""
    return "selfcontrast train" if Path(sys.argv[0]).name.startswith("selfcontrast") else "python train.py"


def errors_in_one_line(task: Callable[[DictConfig], None]) -> Callable[[DictConfig], None]:
    """Return the task with an exit in place of an error that a user can mend: Hydra would print a line of its own."""

    def job(cfg: DictConfig) -> None:
        try:
            task(cfg)
        except (UserError, OmegaConfBaseException) as error:
            if FULL_ERROR:
                raise
            sys.exit(one_line(error))

    return job


def run_hydra(task: Callable[[DictConfig], Any], folder: str, name: str) -> None:
    """Run a task with Hydra's command line. What a user can mend ends the process with one line and exit code 1."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # lets errors through to here
    begun, several = False, bool({"-m", "--multirun"} & set(sys.argv))
    for argument in sys.argv[1:]:  # before Hydra writes them down
        key = argument.partition("=")[0]
        try:
            check_text(argument, key)
        except UserError as error:
            sys.exit(one_line(error))
        if secrets_in(argument):
            sys.exit(f"error: {key}: a URL with a credential in it, and settings are recorded: use the environment")
    try:
        sys.argv[1:] = current_arguments(sys.argv[1:])
    except UserError as error:
        sys.exit(one_line(error))

    def begin(cfg: DictConfig) -> Any:
        nonlocal begun
        begun = True
        try:
            return task(current_config(cfg, HydraConfig.get().overrides.task))
        except Exception as error:
            vars(error)[IN_JOB] = True  # for the process that waits for this one
            raise

    try:
        hydra.main(version_base="1.3", config_path=folder, config_name=name)(begin)()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if FULL_ERROR:
            raise
        sys.exit(one_line(error))
    except OSError as error:
        if FULL_ERROR or begun or IN_JOB in vars(error):
            raise
        sys.exit(one_line(UserError(f"the output folder cannot be used: {error}; choose another, hydra.run.dir=…")))
    except Exception as error:  # Hydra's own code is no match for some overrides, such as encoder=[null]
        if FULL_ERROR or begun or several:  # of several, it may be an error of a job in another process
            raise
        sys.exit(one_line(UserError(f"these settings cannot be composed: {error}; {command()} --help")))
