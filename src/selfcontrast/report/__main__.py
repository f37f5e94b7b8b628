"""Reports of runs and sweeps, from what they left, at any time and without a network.

python -m selfcontrast.report DIR              a run's or a sweep's own report, written again
python -m selfcontrast.report DIR… --to DIR    any runs and sweeps together, as one table and figure over K and seeds
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from selfcontrast.errors import UserError

if TYPE_CHECKING:
    from selfcontrast.report.sweep import Sweep


def main(arguments: Sequence[str]) -> None:
    """A folder that holds a result is a run or a measured model; one with results below it is a sweep, or of runs."""
    parser = argparse.ArgumentParser(
        prog="selfcontrast report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", metavar="DIR", nargs="+", type=Path, help="of a run, of a sweep, or of several")
    parser.add_argument("--to", metavar="DIR", type=Path, help="where the report goes; without it, the one DIR")
    told = parser.parse_args(arguments)
    from selfcontrast.results import RESULT

    folders: list[Path] = told.folders
    if len(folders) == 1 and told.to is None and (folders[0] / RESULT).exists():
        again(folders[0])
        return
    report_sweep(folders, told.to)


def report_sweep(folders: Sequence[Path], to: Path | None) -> "Sweep":
    """Write and print one report of all runs below the folders, and return what it is made from.

    Raises `UserError` where there is no run, or where the report of several folders has no folder of its own.
    """
    from selfcontrast.report.sweep import read_sweep
    from selfcontrast.report.sweep_page import write_sweep
    from selfcontrast.report.sweep_terminal import print_sweep
    from selfcontrast.results import RESULT

    if len(folders) > 1 and to is None:
        raise UserError("several folders make one report: where is it to go? --to DIR")
    sweep = read_sweep(folders, to)
    if not sweep.jobs:
        named = ", ".join(map(str, folders))
        raise UserError(f"{named}: no {RESULT} in it or below; give a finished run's or sweep's folder")
    write_sweep(sweep)
    print_sweep(sweep)
    return sweep


def again(folder: Path) -> None:
    """Write and print a run's own report, or that of a model that was measured."""
    from selfcontrast.report.evaluated import print_evaluated, write_evaluated
    from selfcontrast.report.page import write_report
    from selfcontrast.report.terminal import print_result
    from selfcontrast.results import Evaluated, Result

    if Evaluated.is_in(folder):
        evaluated = Evaluated.read(folder)
        write_evaluated(evaluated, folder)
        print_evaluated(evaluated, folder)
        return
    result = Result.read(folder)
    write_report(result, folder)
    print_result(result, folder)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
