"""selfcontrast train | evaluate | report | store | export | plan"""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from selfcontrast.errors import UserError

USAGE = """\
selfcontrast COMMAND …      Self-Contrast (arXiv 2404.00604) from supervised data to a report

  train [KEY=VALUE …]       a job, or with -m a sweep           selfcontrast train -m negatives=1,4,8,16
  plan [KEY=VALUE …]        its stages, and what the store has  selfcontrast plan negatives=4
  evaluate model=FOLDER …   the same measurements of any model
  report DIR …              reports of runs and sweeps, written again or together
  store COMMAND …           ls, show, diff, verify, prune
  export SOURCE …           negatives for other trainers, or the policy for the Hugging Face Hub

selfcontrast COMMAND --help tells more of each.
"""
HYDRA = {"train": "selfcontrast.cli.train", "evaluate": "selfcontrast.cli.evaluate"}  # which read sys.argv
OTHERS = {
    "plan": "selfcontrast.cli.plan",
    "report": "selfcontrast.report.__main__",
    "store": "selfcontrast.store.__main__",
    "export": "selfcontrast.export",
}


def main() -> None:
    """Run the sub-command that `sys.argv` names."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(USAGE, end="")
    elif name in HYDRA or name in OTHERS:
        sys.argv = [f"selfcontrast {name}", *rest]
        try:
            if name in HYDRA:
                import_module(HYDRA[name]).main()
            else:
                command: Callable[[Sequence[str]], int | None] = import_module(OTHERS[name]).main
                sys.exit(command(rest) or 0)
        except UserError as error:
            sys.exit(f"error: {error}")
    else:
        sys.exit(f"error: {name}: no such command; one of {', '.join([*HYDRA, *OTHERS])}")


if __name__ == "__main__":
    main()
