"""Write reports of runs and sweeps from their result.json, at any time and without a network.

python -m selfcontrast.report DIR              write the report of one run or one sweep again
python -m selfcontrast.report DIR… --to DIR    report several runs and sweeps together, as one table and one figure
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
    """Report one run or measured model if the folder holds a result. Otherwise, report all runs below the folders."""
    parser = argparse.ArgumentParser(
        prog="selfcontrast report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", metavar="DIR", nargs="+", type=Path, help="a run, a sweep, or several of them")
    parser.add_argument("--to", metavar="DIR", type=Path, help="folder of the report; default: the single DIR")
    args = parser.parse_args(arguments)
    from selfcontrast.results import RESULT

    folders: list[Path] = args.folders
    if len(folders) == 1 and args.to is None and (folders[0] / RESULT).exists():
        report_run(folders[0])
        return
    report_sweep(folders, args.to)


def report_sweep(folders: Sequence[Path], to: Path | None) -> "Sweep":
    """Write and print one report of all runs below the folders; return the sweep.

    Raises `UserError` if there is no run, or if several folders are given without `to`.
    """
    from selfcontrast.report.sweep import read_sweep
    from selfcontrast.report.sweep_page import write_sweep
    from selfcontrast.report.sweep_terminal import print_sweep
    from selfcontrast.results import RESULT

    if len(folders) > 1 and to is None:
        raise UserError("Several folders make one report. Name the report's folder with --to DIR.")
    sweep = read_sweep(folders, to)
    if not sweep.jobs:
        names = ", ".join(map(str, folders))
        raise UserError(f"No {RESULT} in or below {names}. Give the folder of a finished run or sweep.")
    write_sweep(sweep)
    print_sweep(sweep)
    return sweep


def report_run(folder: Path) -> None:
    """Write and print the report of one run, or of one measured model."""
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
