"""Run `selfcontrast train | evaluate | report | store | export | plan`."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from selfcontrast.errors import UserError

USAGE = """\
selfcontrast COMMAND …      Self-Contrast (arXiv 2404.00604) from supervised data to a report

  train [KEY=VALUE …]       run a job, or with -m a sweep           selfcontrast train -m negatives=1,4,8,16
  plan [KEY=VALUE …]        list a job's stages and what is cached  selfcontrast plan negatives=4
  evaluate model=FOLDER …   measure any model as a job measures its policy
  report DIR …              rewrite or combine reports of runs and sweeps
  store COMMAND …           manage cached artifacts: ls, show, diff, verify, prune
  export SOURCE …           write negatives for other trainers, or the policy for the Hugging Face Hub

Run `selfcontrast COMMAND --help` for details.
"""
HYDRA = {"train": "selfcontrast.cli.train", "evaluate": "selfcontrast.cli.evaluate"}  # both read sys.argv
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
        sys.exit(f"error: {name}: no such command. Use one of {', '.join([*HYDRA, *OTHERS])}.")


if __name__ == "__main__":
    main()
