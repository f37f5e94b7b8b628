"""python -m selfcontrast.report DIR…   writes the reports of runs and sweeps again, from result.json."""

import sys
from pathlib import Path

from selfcontrast.errors import UserError
from selfcontrast.evaluate import Evaluated, print_evaluated
from selfcontrast.report import print_result, write_report
from selfcontrast.report.evaluated import write_evaluated
from selfcontrast.report.sweep import read_sweep
from selfcontrast.report.sweep_page import write_sweep
from selfcontrast.report.sweep_terminal import print_sweep
from selfcontrast.results import RESULT, Result


def main(folders: list[Path]) -> None:
    """A folder that holds a result is a run or a measured model; one with results below it is a sweep."""
    if not folders:
        raise UserError("which folders? python -m selfcontrast.report DIR…, each of a run or a sweep")
    for folder in folders:
        if (folder / RESULT).exists():
            if Evaluated.is_in(folder):
                evaluated = Evaluated.read(folder)
                write_evaluated(evaluated, folder)
                print_evaluated(evaluated, folder)
                continue
            result = Result.read(folder)
            write_report(result, folder)
            print_result(result, folder)
            continue
        sweep = read_sweep(folder)
        if not sweep.jobs:
            raise UserError(f"{folder}: no {RESULT} in it or below; give a finished run's or sweep's folder")
        write_sweep(sweep)
        print_sweep(sweep)


if __name__ == "__main__":
    try:
        main([Path(argument) for argument in sys.argv[1:]])
    except UserError as error:
        sys.exit(f"error: {error}")
