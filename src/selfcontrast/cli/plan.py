"""List the stages of a job, which of them are cached, and the work of the others. Nothing is computed."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from omegaconf.errors import OmegaConfBaseException

from selfcontrast.cli.hydra_app import one_line
from selfcontrast.environment import set_environment
from selfcontrast.errors import UserError

if TYPE_CHECKING:
    from selfcontrast.planning.plan import Planned


def main(arguments: Sequence[str]) -> None:
    """Print a job's plan. Raises `UserError` if the job would not start here."""
    parser = argparse.ArgumentParser(prog="selfcontrast plan", description=__doc__)
    parser.add_argument("settings", metavar="KEY=VALUE", nargs="*", help="overrides, as for selfcontrast train")
    args = parser.parse_args(arguments)
    set_environment()
    from selfcontrast.api import compose, plan

    try:
        cfg = compose(*args.settings, output=".")
    except Exception as error:  # Hydra itself fails on some settings, such as encoder=[null]
        raise UserError(one_line(error).removeprefix("error: ")) from error
    try:
        planned = plan(cfg)
    except OmegaConfBaseException as error:
        raise UserError(one_line(error).removeprefix("error: ")) from error
    print_plan(planned)
    if planned.obstacle:
        raise UserError(f"the job would not start here: {planned.obstacle}")


def print_plan(planned: "Planned") -> None:
    """Print a row per stage: its artifact if the store has it, else its work and the bytes that it writes."""
    from selfcontrast.planning.work import sizes_of, work
    from selfcontrast.report.terminal import columns, say, show
    from selfcontrast.report.text import disk

    sizes = sizes_of(planned)
    table = columns("stage", "in the store", "work", "disk", left=2)
    for step in planned.steps:
        artifact = step.artifact
        if artifact.cached:
            table.add_row(step.label, f"{artifact.stage}/{artifact.key}", "", "")
        else:
            needed = work(step, planned.parts, sizes)
            table.add_row(step.label, "no", needed.text, disk(needed.disk))
    show(table)
    missing = sum(not step.artifact.cached for step in planned.steps)
    say(f"{missing} of {len(planned.steps)} stages to do")
    if missing and sizes.prompts is not None:
        say(f"{sizes.assumption}.")
