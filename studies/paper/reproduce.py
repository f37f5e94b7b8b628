"""The paper's experiments: print their cost and their commands, or run them.

python -m studies.paper.reproduce all --dry-run               every experiment: stages, what is there, cost
python -m studies.paper.reproduce hh_rlhf/self_contrast nectar/spin --dry-run
python -m studies.paper.reproduce hh_rlhf --dry-run --measured outputs/SHORT_RUN      hours from the speeds of a run
python -m studies.paper.reproduce hh_rlhf/self_contrast +debug=tiny                   runs it

An experiment is named DATA/ARM, or DATA for all arms of it; arguments with + or = are settings of train.py.
"""

import argparse
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from selfcontrast.cli.hydra_app import one_line
from selfcontrast.errors import UserError
from selfcontrast.files import CONF

DATA = ("hh_rlhf", "ultrachat", "nectar")
ARMS = ("sft", "dpo_std", "spin", "self_contrast")
KS = (1, 2, 4, 8, 16)  # the paper's
SLURM = ("hydra/launcher=slurm", "hydra.launcher.partition=PARTITION", "hydra.launcher.gpus_per_node=8")
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # SIGUSR1: SLURM, before a time limit
SPEEDS = Path(__file__).parent / "throughput.yaml"


def experiments(names: Sequence[str]) -> list[str]:
    """Those that are named: one, all of a data set, or all. Raises `UserError` for a name that is none."""
    every = [f"{data}/{arm}" for data in DATA for arm in ARMS]
    found: list[str] = []
    for name in names:
        chosen = every if name == "all" else [one for one in every if name in (one, one.partition("/")[0])]
        if not chosen:
            raise UserError(f"{name}: no experiment; all, one of {', '.join(DATA)}, or one such as {every[3]}")
        found += [one for one in chosen if one not in found]
    return found


def choices(experiment: str) -> list[str]:
    """Return the overrides of train.py that select an experiment."""
    data, _, arm = experiment.partition("/")
    pairs = (data, arm) == ("ultrachat", "dpo_std")  # UltraChat has no pairs
    return ["+experiment=paper", f"data={data}{'_pairs' if pairs else ''}", f"method={arm}"]


def jobs(experiment: str, overrides: Sequence[str]) -> list[list[str]]:
    """Return the overrides of each job of an experiment: for Self-Contrast one job per K, unless K is given."""
    own = [*choices(experiment), *overrides]
    if not experiment.endswith("self_contrast") or any(each.startswith("negatives=") for each in overrides):
        return [own]
    return [[*own, f"negatives={count}"] for count in KS]


def command(experiment: str, overrides: Sequence[str], *more: str) -> list[str]:
    """Return the arguments of one train.py command that runs all jobs of an experiment."""
    own = [*choices(experiment), *overrides]
    several = len(jobs(experiment, overrides)) > 1
    swept = [f"negatives={','.join(map(str, KS))}"] if several else []
    return [*(["-m"] if several or more else []), *more, *own, *swept]


def composed(overrides: Sequence[str]) -> DictConfig:
    """Return the config of a job to plan it, which needs neither a GPU nor a run's folder."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config: DictConfig = compose("config", [*overrides, "output=.", "hardware.accelerator=cpu"])
    return config


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="EXPERIMENT | KEY=VALUE")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    parser.add_argument("--hardware", help=f"hardware in {SPEEDS.name} with the speeds to estimate hours")
    parser.add_argument("--measured", type=Path, metavar="RUN", help="folder of a run to take speeds from")
    parser.add_argument("--speed", action="append", default=[], metavar="KIND=N", help="a speed per GPU and second")
    parser.add_argument("--prompts", type=int, help="training prompts, if the data cannot be read here")
    parser.add_argument("--evaluated", type=int, help="prompts of the evaluation, if the data cannot be read here")
    parser.add_argument("--prompt-tokens", type=float, help="mean tokens of a prompt, if the data cannot be read here")
    parser.add_argument(
        "--response-tokens", type=float, help="mean tokens of a response, if the data cannot be read here"
    )
    parser.add_argument("--parameters", type=float, help="parameters of the model, if its config is not here")
    return parser.parse_intermixed_args(given)


def speeds(args: argparse.Namespace) -> dict[str, float]:
    """Return the speeds given by the arguments. Speeds by hand override a run's, and a run's override a file's."""
    from studies.paper.costs import checked, from_file, measured

    found = from_file(SPEEDS, args.hardware) if args.hardware else {}
    found |= measured(args.measured) if args.measured else {}
    for pair in args.speed:
        kind, _, number = pair.partition("=")
        try:
            found |= checked({kind: float(number)})
        except ValueError as error:
            raise UserError(f"--speed {pair}: KIND=NUMBER, such as train=12000") from error
    return found


def show(names: Sequence[str], overrides: Sequence[str], args: argparse.Namespace) -> None:
    from selfcontrast.planning.plan import DataReader, plan
    from studies.paper.terminal import AGENTS, print_commands, print_plan

    known, seen, read = speeds(args), set[str](), DataReader()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries; a failure is reported once
    given = {name: getattr(args, name) for name in ("prompts", "evaluated", "prompt_tokens", "response_tokens")}
    for experiment in names:
        planned = [plan(composed(job), read) for job in jobs(experiment, overrides)]
        print_plan(experiment, planned, known, seen, {**given, "parameters": args.parameters})
        commands = {
            "one node": ["python", "train.py", *command(experiment, overrides)],
            "SLURM": ["python", "train.py", *command(experiment, overrides, *SLURM)],
        }
        if len(planned) > 1 and not overrides:  # the sweep's file does not have the overrides
            commands[AGENTS] = ["wandb", "sweep", f"sweeps/paper/{experiment.partition('/')[0]}.yaml"]
        print_commands(commands)


def run(names: Sequence[str], overrides: Sequence[str]) -> int:
    """Run the experiments one after another, until one fails. Return its exit code, or 0."""
    for experiment in names:
        called = [sys.executable, str(CONF.parent / "train.py"), *command(experiment, overrides)]
        sys.stderr.write(f"== {experiment}\n")
        if code := call(called):
            return code
    return 0


def call(words: Sequence[str]) -> int:
    """Run a command, pass on what tells this process to end, and wait. Returns its exit code, as a shell counts it."""
    children: list[subprocess.Popen[bytes]] = []
    noted: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        terminal = sys.stdin is not None and sys.stdin.isatty() and os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
        for child in children:
            if number != signal.SIGINT or not terminal:  # Ctrl-C reaches the whole group
                child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in PASSED_ON}
    try:
        with subprocess.Popen(words) as child:
            children.append(child)
            for number in noted:  # before there was a child
                child.send_signal(number)
            code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def main(given: Sequence[str] | None = None) -> int:
    args = arguments(given)
    overrides = [name for name in args.names if "=" in name or name.startswith(("+", "~"))]
    try:
        names = experiments([name for name in args.names if name not in overrides])
        if not names:
            raise UserError("name an experiment, or all")
        if args.dry_run:
            show(names, overrides, args)
            return 0
    except (UserError, HydraException, OmegaConfBaseException) as error:
        sys.exit(one_line(error))
    return run(names, overrides)


if __name__ == "__main__":
    sys.exit(main())
