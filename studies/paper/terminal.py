"""Print a plan to the terminal."""

import shlex
from collections.abc import Callable, Mapping, Sequence

from selfcontrast.planning.plan import Planned, PlannedStage
from selfcontrast.report.terminal import columns, say, show
from selfcontrast.report.text import count
from studies.paper.costs import OPTIMISER_BYTES, UNITS, Sizes, Work, hours, sizes_of, work

UNKNOWN = "?"
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
    disk: list[float | None] = []
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
            disk.append(needed.disk)
            table.add_row(_label(step, planned, jobs), "to do", _amount(needed), _hours(duration), _bytes(needed.disk))
    printed |= counted
    table.add_row("", "", "", "", "")
    table.add_row("total", f"{len(total)} of {len(counted)} to do", "", _sum(total, _hours), _sum(disk, _bytes))
    say("")
    say(f"{experiment}: {len(jobs)} job{'s' if len(jobs) > 1 else ''}", "bold")
    for obstacle in dict.fromkeys(planned.obstacle for planned in jobs if planned.obstacle):
        say(f"It cannot start here: {obstacle}")
    show(table)
    say(_assumptions(job_sizes))
    if any(kind not in speeds for kind in UNITS) and any(duration is None for duration in total):
        say(_missing_speeds(speeds))
    if job_sizes.parameters:
        say(f"During training, a checkpoint takes another {_bytes(job_sizes.parameters * OPTIMISER_BYTES)}.")


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


def _amount(needed: Work) -> str:
    if needed.kind is None:
        return ""
    return UNKNOWN if needed.amount is None else f"{_short(needed.amount)} {UNITS[needed.kind]}"


def _short(number: float) -> str:
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {sign}"
    return f"{number:.3g}"


def _hours(value: float | None) -> str:
    return UNKNOWN if value is None else "" if value == 0 else f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def _bytes(size: float | None) -> str:
    if size is None:
        return UNKNOWN
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return "" if size == 0 else "< 1 MB"


def _sum(values: Sequence[float | None], write: Callable[[float], str]) -> str:
    known = [value for value in values if value is not None]
    total = write(sum(known)) or "0"
    if len(known) == len(values):
        return total
    return f"{total} and {UNKNOWN}" if sum(known) else UNKNOWN


def _assumptions(sizes: Sizes) -> str:
    if sizes.prompts is None:
        return "The data cannot be read here: give --prompts, --prompt-tokens, --response-tokens and --evaluated."
    lengths = [UNKNOWN if value is None else f"{value:.0f}" for value in (sizes.prompt_tokens, sizes.response_tokens)]
    return (
        f"Assumed: {count(sizes.prompts)} training prompts of {lengths[0]} tokens and responses of {lengths[1]} "
        "(4 characters per token; without stored candidates, responses are as long as targets)."
    )


def _missing_speeds(speeds: Mapping[str, float]) -> str:
    missing = [kind for kind in UNITS if kind not in speeds]
    return (
        f"GPU-hours: no measured speed for {', '.join(missing)} on this hardware. Give tokens/s per GPU, such as "
        f"--speed {missing[0]}=N, or do a short run (data.train.limit=2000) and name its folder with --measured."
    )
