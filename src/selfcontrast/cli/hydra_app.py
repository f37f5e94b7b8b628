"""Run commands whose config Hydra composes: errors become one line, and no credential is recorded."""

import difflib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
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
FULL_ERROR = os.environ.get("HYDRA_FULL_ERROR") == "1"  # the user's value, before `run_hydra` sets it


def settings(cfg: DictConfig) -> dict[str, Any]:
    """Return the settings to record. Raises `UserError` if one contains a credential."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    refuse_credentials(OmegaConf.to_container(cfg), folder)  # as Hydra has written them
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    refuse_credentials(config, folder)
    return {str(key): value for key, value in config.items()}


def one_line(error: Exception) -> str:
    """Return the line that a user sees for an error that the user can fix."""
    if (old := re.search(r"Could not override '(\w+)", str(error))) and (new := RENAMED_GROUPS.get(old[1])):
        return f"error: the group {old[1]} is now {new}. Write /{new} in the defaults list of your file."
    if unknown := re.match(r"Could not override '((\w+)[\w.]*)'", str(error)):
        key, group = unknown.groups()
        if (CONF / key).is_dir():  # a group that the default job does not use
            return f"error: {key}: write +{key}=NAME, with a plus sign."
        part = f" -p {group}" if (CONF / group).is_dir() else ""
        meant = f" Did you mean {' or '.join(names)}?" if (names := similar_settings(key)) else ""
        return f"error: {key}: no such setting.{meant} `{command()} --cfg job{part}` lists them all."
    line = "error: " + printable(str(error).split("\n    full_key")[0])
    # `method=NAME` was the label until 0.2.0.
    return f"{line} Set the policy's name in reports with label=NAME." if "Could not find 'method/" in line else line


def similar_settings(key: str) -> list[str]:
    """Return settings that the user may have meant by `key`: up to three that end in this word, or its closest sibling.

    They are those of the default job with the groups' options that the command line chooses.
    """
    pairs = [argument.partition("=") for argument in sys.argv[1:]]
    choices = [f"{group}={name}" for group, _, name in pairs if (CONF / group / f"{name}.yaml").is_file()]
    GlobalHydra.instance().clear()  # the command ends with this error
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            keys = list(_keys(OmegaConf.to_container(hydra.compose("config", [*choices, "output=."])), ""))
    except (HydraException, OmegaConfBaseException):  # the choices contain another mistake
        return []
    same_word = [name for name in keys if name.endswith(f".{key}")]
    if 0 < len(same_word) <= 3:
        return same_word
    section, dot, word = key.rpartition(".")
    siblings = [name.rpartition(".")[2] for name in keys if name.rpartition(".")[0] == section]
    return [section + dot + match for match in difflib.get_close_matches(word, siblings, n=1, cutoff=0.55)]


def _keys(node: Any, prefix: str) -> Iterator[str]:
    for key, value in node.items() if isinstance(node, dict) else ():
        yield f"{prefix}{key}"
        yield from _keys(value, f"{prefix}{key}.")


def command() -> str:
    """Return the command that starts a job: the installed one, or a checkout's script."""
    return "selfcontrast train" if Path(sys.argv[0]).name.startswith("selfcontrast") else "python train.py"


def errors_in_one_line(task: Callable[[DictConfig], None]) -> Callable[[DictConfig], None]:
    """Return a task that exits on user errors. For an exception, Hydra would print a line of its own."""

    def job(cfg: DictConfig) -> None:
        try:
            task(cfg)
        except (UserError, OmegaConfBaseException) as error:
            if FULL_ERROR:
                raise
            sys.exit(one_line(error))

    return job


def run_hydra(task: Callable[[DictConfig], Any], folder: str, name: str) -> None:
    """Run a task with Hydra's command line. A user's mistake ends the process with one line and exit code 1."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # otherwise Hydra handles errors itself
    started, multirun = False, bool({"-m", "--multirun"} & set(sys.argv))
    for argument in sys.argv[1:]:  # before Hydra records them
        key = argument.partition("=")[0]
        try:
            check_text(argument, key)
        except UserError as error:
            sys.exit(one_line(error))
        if secrets_in(argument):
            sys.exit(
                f"error: {key}: the URL contains a credential, and settings are recorded. Put it into the environment."
            )
    try:
        sys.argv[1:] = current_arguments(sys.argv[1:])
    except UserError as error:
        sys.exit(one_line(error))

    def begin(cfg: DictConfig) -> Any:
        nonlocal started
        started = True
        try:
            return task(current_config(cfg, HydraConfig.get().overrides.task))
        except Exception as error:
            vars(error)[IN_JOB] = True  # for a parent process
            raise

    try:
        hydra.main(version_base="1.3", config_path=folder, config_name=name)(begin)()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if FULL_ERROR:
            raise
        sys.exit(one_line(error))
    except OSError as error:
        if FULL_ERROR or started or IN_JOB in vars(error):
            raise
        sys.exit(one_line(UserError(f"the output folder cannot be used: {error}. Choose another: hydra.run.dir=…")))
    except Exception as error:  # Hydra itself fails on some overrides, such as encoder=[null]
        if not FULL_ERROR and 'detect "srun"' in str(error):  # as submitit says it
            sys.exit("error: hydra/launcher=slurm: there is no srun here. Start it on a node of a SLURM cluster.")
        if FULL_ERROR or started or multirun:  # in a multirun, a job in another process may have failed
            raise
        sys.exit(one_line(UserError(f"Hydra cannot compose these settings: {error}. See `{command()} --help`.")))
