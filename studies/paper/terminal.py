"""Print a plan to the terminal."""

import shlex
from collections.abc import Callable, Mapping, Sequence

from selfcontrast.planning.plan import Planned, PlannedStage
from selfcontrast.planning.work import OPTIMISER_BYTES, UNITS, Sizes, sizes_of, work
from selfcontrast.report.terminal import columns, say, show
from selfcontrast.report.text import UNKNOWN, disk
from studies.paper.costs import hours

AGENTS = "W&B agents"


def print_plan(
    experiment: str,
    jobs: Sequence[Planned],
    speeds: Mapping[str, float],
    printed: set[str],
    sizes: Mapping[str, float | int | None],
) -> None:
    """Print every stage of the jobs once. Mark stages in `printed` as shared, and add the others to it.

    Args:
        printed: stages of the experiments that were printed before.
    """
    job_sizes = sizes_of(jobs[0], **sizes)
    table = columns("stage", "", "work", "GPU-hours", "disk", left=2)
    total: list[float | None] = []
    written: list[float | None] = []
    counted: set[str] = set()
    for planned in jobs:
        for step in planned.steps:
            key = f"{step.stage}/{step.artifact.key}"
            if key in counted:
                continue
            counted.add(key)
            if step.artifact.cached or key in printed:
                state = "in the store" if step.artifact.cached else "shared"
                table.add_row(_label(step, planned, jobs), state, "", "", "")
                continue
            needed = work(step, planned.parts, job_sizes)
            duration = hours(needed, speeds)
            total.append(duration)
            written.append(needed.disk)
            label = _label(step, planned, jobs)
            table.add_row(label, "to do", needed.text, _hours(duration), disk(needed.disk))
    printed |= counted
    table.add_row("", "", "", "", "")
    table.add_row("total", f"{len(total)} of {len(counted)} to do", "", _sum(total, _hours), _sum(written, disk))
    say("")
    say(f"{experiment}: {len(jobs)} job{'s' if len(jobs) > 1 else ''}", "bold")
    for obstacle in dict.fromkeys(planned.obstacle for planned in jobs if planned.obstacle):
        say(f"It cannot start here: {obstacle}")
    show(table)
    say(_assumed(job_sizes))
    if any(kind not in speeds for kind in UNITS) and any(duration is None for duration in total):
        say(_missing_speeds(speeds))
    if job_sizes.parameters:
        say(f"During training, a checkpoint takes another {disk(job_sizes.parameters * OPTIMISER_BYTES)}.")


def print_commands(commands: Mapping[str, Sequence[str]]) -> None:
    for name, args in commands.items():
        say(f"{name:<11} {shlex.join(args)}", wrap=False)
    if AGENTS in commands:
        say(
            f"{'':<11} wandb agent ID   # on each machine: the ID that `wandb sweep` prints, a shared store", wrap=False
        )


def _label(step: PlannedStage, planned: Planned, jobs: Sequence[Planned]) -> str:
    several = len({job.parts.negatives for job in jobs}) > 1
    measured = step.stage in ("evaluate", "divergence", "answers", "benchmark")
    depends_on_k = step.stage == "align" or (measured and not step.label.endswith(" SFT"))
    return f"{step.label}, K = {planned.parts.negatives}" if several and depends_on_k else step.label


def _hours(value: float | None) -> str:
    return UNKNOWN if value is None else "" if value == 0 else f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def _sum(values: Sequence[float | None], write: Callable[[float], str]) -> str:
    known = [value for value in values if value is not None]
    total = write(sum(known)) or "0"
    if len(known) == len(values):
        return total
    return f"{total} and {UNKNOWN}" if sum(known) else UNKNOWN


def _assumed(sizes: Sizes) -> str:
    if sizes.prompts is None:
        return "The data cannot be read here: give --prompts, --prompt-tokens, --response-tokens and --evaluated."
    return f"{sizes.assumption}."


def _missing_speeds(speeds: Mapping[str, float]) -> str:
    missing = [kind for kind in UNITS if kind not in speeds]
    return (
        f"GPU-hours: no measured speed for {', '.join(missing)} on this hardware. Give tokens/s per GPU, such as "
        f"--speed {missing[0]}=N, or do a short run (data.train.limit=2000) and name its folder with --measured."
    )
