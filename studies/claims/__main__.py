"""The report of any runs and sweeps together, and next to it the paper's claims: claims.html, claims.md.

python -m studies.claims DIR              of a sweep, or of a folder with several
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
    parser.add_argument("folders", metavar="DIR", nargs="+", type=Path, help="folders of runs or sweeps")
    parser.add_argument("--to", metavar="DIR", type=Path, help="folder of the report; by default the only DIR")
    args = parser.parse_args(arguments)
    sweep = report_sweep(args.folders, args.to)
    from studies.claims.page import print_claims, shown, write_claims  # slow to import, so mistakes are reported first

    claims = shown([job.result for job in sweep.jobs])
    if not claims:
        raise UserError("no claim can be judged: it takes several methods or K, two seeds, and data with a verifier")
    write_claims(claims, sweep.folder)
    print_claims(claims, sweep.folder)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
