"""Plan or run the paper's experiments. A plan shows stages, cached results, cost, and commands.

python -m studies.paper.reproduce all --dry-run               plan every experiment
python -m studies.paper.reproduce hh_rlhf/self_contrast nectar/spin --dry-run
python -m studies.paper.reproduce hh_rlhf --dry-run --measured outputs/SHORT_RUN      hours from a run's speeds
python -m studies.paper.reproduce hh_rlhf/self_contrast +debug=tiny                   run it

An experiment's name is DATA/METHOD, or DATA for all its methods. Arguments with + or = are settings of train.py.
"""

import argparse
import logging
import os
import signal
import subprocess
import sys
import time
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
METHODS = ("sft", "dpo_std", "spin", "self_contrast")
KS = (1, 2, 4, 8, 16)  # the paper's values of K
SLURM = ("hydra/launcher=slurm", "hydra.launcher.partition=PARTITION", "hydra.launcher.gpus_per_node=8")
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # SLURM sends SIGUSR1 before the time limit
POLL = 0.1  # seconds
SPEEDS = Path(__file__).parent / "throughput.yaml"


def experiments(names: Sequence[str]) -> list[str]:
    """Expand names into experiments: "all", a data set, or one experiment. Raise `UserError` for an unknown name."""
    labels = [f"{data}/{method}" for data in DATA for method in METHODS]
    named: list[str] = []
    for name in names:
        chosen = labels if name == "all" else [label for label in labels if name in (label, label.partition("/")[0])]
        if not chosen:
            raise UserError(
                f"{name}: no such experiment. Give all, one of {', '.join(DATA)}, or a name such as {labels[3]}."
            )
        named += [label for label in chosen if label not in named]
    return named


def choices(experiment: str) -> list[str]:
    """Return the overrides of train.py that choose an experiment."""
    data, _, method = experiment.partition("/")
    pairs = (data, method) == ("ultrachat", "dpo_std")  # UltraChat has no pairs of its own
    return ["+experiment=paper", f"data={data}{'_pairs' if pairs else ''}", f"method={method}"]


def jobs(experiment: str, overrides: Sequence[str]) -> list[list[str]]:
    """Return the overrides of each job. Self-Contrast has a job per K, unless an override gives K."""
    args = [*choices(experiment), *overrides]
    if not experiment.endswith("self_contrast") or any(override.startswith("negatives=") for override in overrides):
        return [args]
    return [[*args, f"negatives={count}"] for count in KS]


def command(experiment: str, overrides: Sequence[str], *launcher: str) -> list[str]:
    """Return train.py's arguments for all jobs of an experiment. `launcher` holds overrides of Hydra's launcher."""
    args = [*choices(experiment), *overrides]
    several = len(jobs(experiment, overrides)) > 1
    swept = [f"negatives={','.join(map(str, KS))}"] if several else []
    return [*(["-m"] if several or launcher else []), *launcher, *args, *swept]


def composed(overrides: Sequence[str]) -> DictConfig:
    """Return a job's config for a plan, which needs neither a GPU nor a run's folder."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config: DictConfig = compose("config", [*overrides, "output=.", "hardware.accelerator=cpu"])
    return config


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="EXPERIMENT | KEY=VALUE")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, and run nothing")
    parser.add_argument("--hardware", help=f"estimate hours from the speeds of this entry of {SPEEDS.name}")
    parser.add_argument("--measured", type=Path, metavar="RUN", help="estimate hours from the speeds of this run")
    parser.add_argument(
        "--speed", action="append", default=[], metavar="KIND=N", help="speed of a kind of work, per GPU and second"
    )
    parser.add_argument("--prompts", type=int, help="number of training prompts, if the data cannot be read here")
    parser.add_argument("--evaluated", type=int, help="number of evaluation prompts, if the data cannot be read here")
    parser.add_argument("--prompt-tokens", type=float, help="mean tokens of a prompt, if the data cannot be read here")
    parser.add_argument(
        "--response-tokens", type=float, help="mean tokens of a response, if the data cannot be read here"
    )
    parser.add_argument("--parameters", type=float, help="number of the model's parameters, if its config is not here")
    return parser.parse_intermixed_args(argv)


def speeds(args: argparse.Namespace) -> dict[str, float]:
    """Return the measured speeds. --speed overrides --measured, and --measured overrides --hardware."""
    from studies.paper.costs import checked, from_file, measured

    result = from_file(SPEEDS, args.hardware) if args.hardware else {}
    result |= measured(args.measured) if args.measured else {}
    for pair in args.speed:
        kind, _, number = pair.partition("=")
        try:
            result |= checked({kind: float(number)})
        except ValueError as error:
            raise UserError(f"--speed {pair}: give KIND=NUMBER, such as train=12000") from error
    return result


def show(names: Sequence[str], overrides: Sequence[str], args: argparse.Namespace) -> None:
    """Print the plan of each experiment, and the commands that run it."""
    from selfcontrast.planning.plan import DataReader, plan
    from studies.paper.terminal import AGENTS, print_commands, print_plan

    measured, counted, reader = speeds(args), set[str](), DataReader()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # hide its retries; a failure is reported once
    sizes = {name: getattr(args, name) for name in ("prompts", "evaluated", "prompt_tokens", "response_tokens")}
    for experiment in names:
        planned = [plan(composed(job), reader) for job in jobs(experiment, overrides)]
        print_plan(experiment, planned, measured, counted, {**sizes, "parameters": args.parameters})
        commands = {
            "one node": ["python", "train.py", *command(experiment, overrides)],
            "SLURM": ["python", "train.py", *command(experiment, overrides, *SLURM)],
        }
        if len(planned) > 1 and not overrides:  # the sweep file has no other overrides
            commands[AGENTS] = ["wandb", "sweep", f"sweeps/paper/{experiment.partition('/')[0]}.yaml"]
        print_commands(commands)


def run(names: Sequence[str], overrides: Sequence[str]) -> int:
    """Run the experiments one after another. Stop at the first that fails."""
    for experiment in names:
        command_line = [sys.executable, str(CONF.parent / "train.py"), *command(experiment, overrides)]
        sys.stderr.write(f"== {experiment}\n")
        if code := call(command_line):
            return code
    return 0


def call(command_line: Sequence[str]) -> int:
    """Run a command, forward signals that end this process, and wait. Return the exit code that a shell reports."""
    children: list[subprocess.Popen[bytes]] = []
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        terminal = sys.stdin is not None and sys.stdin.isatty() and os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
        for child in children:
            if number != signal.SIGINT or not terminal:  # Ctrl-C also reaches the child
                child.send_signal(number)

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        with subprocess.Popen(command_line) as child:
            children.append(child)
            for number in received:  # signals from before the child was started
                child.send_signal(number)
            while (code := child.poll()) is None:
                time.sleep(
                    POLL
                )  # `wait` would handle a signal that comes just before it blocks only when the child ends
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    overrides = [name for name in args.names if "=" in name or name.startswith(("+", "~"))]
    try:
        names = experiments([name for name in args.names if name not in overrides])
        if not names:
            raise UserError("no experiment is named. Name one, or all.")
        if args.dry_run:
            show(names, overrides, args)
            return 0
    except (UserError, HydraException, OmegaConfBaseException) as error:
        sys.exit(one_line(error))
    return run(names, overrides)


if __name__ == "__main__":
    sys.exit(main())
