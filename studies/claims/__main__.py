"""Report on runs and sweeps together, and judge the paper's claims from them (claims.html, claims.md).

python -m studies.claims DIR              a sweep, or a folder with several
python -m studies.claims DIR… --to DIR    any runs and sweeps
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from selfcontrast.errors import UserError
from selfcontrast.report.__main__ import report_sweep


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m studies.claims", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folders", metavar="DIR", nargs="+", type=Path, help="folder of a run or a sweep, or a folder of several"
    )
    parser.add_argument(
        "--to", metavar="DIR", type=Path, help="folder for the report; default: DIR, if there is only one"
    )
    args = parser.parse_args(arguments)
    sweep = report_sweep(args.folders, args.to)
    # This import is slow, so mistakes are reported first.
    from studies.claims.page import (
        judge_experiments,
        print_claims,
        write_claims,
    )

    claims = judge_experiments([job.result for job in sweep.jobs])
    if not claims:
        raise UserError(
            "no claim can be judged. Give results of several methods or K, with two seeds, on data with a verifier."
        )
    write_claims(claims, sweep.folder)
    print_claims(claims, sweep.folder)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
