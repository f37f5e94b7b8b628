"""List the stages of a job, and which of them are cached. Nothing is computed."""

import argparse
from collections.abc import Sequence

from omegaconf.errors import OmegaConfBaseException

from selfcontrast.cli.hydra_app import one_line
from selfcontrast.environment import set_environment
from selfcontrast.errors import UserError


def main(arguments: Sequence[str]) -> None:
    """Print a job's plan. Raises `UserError` if the job would not start here."""
    parser = argparse.ArgumentParser(prog="selfcontrast plan", description=__doc__)
    parser.add_argument("settings", metavar="KEY=VALUE", nargs="*", help="overrides, as for selfcontrast train")
    args = parser.parse_args(arguments)
    set_environment()
    from selfcontrast.api import compose, plan
    from selfcontrast.report.terminal import columns, say, show

    try:
        cfg = compose(*args.settings, output=".")
    except Exception as error:  # Hydra itself fails on some settings, such as encoder=[null]
        raise UserError(one_line(error).removeprefix("error: ")) from error
    try:
        planned = plan(cfg)
    except OmegaConfBaseException as error:
        raise UserError(one_line(error).removeprefix("error: ")) from error
    table = columns("stage", "", "artifact", left=3)
    for step in planned.steps:
        artifact = step.artifact
        table.add_row(step.label, "in the store" if artifact.cached else "to do", f"{artifact.stage}/{artifact.key}")
    show(table)
    missing = sum(not step.artifact.cached for step in planned.steps)
    say(f"{missing} of {len(planned.steps)} stages to do")
    if planned.obstacle:
        raise UserError(f"the job would not start here: {planned.obstacle}")
