"""Print a plan on the terminal."""

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
    seen: set[str],
    given: Mapping[str, float | int | None],
) -> None:
    """The stages of all jobs, each once; stages that other experiments have counted (`seen`) are marked as shared."""
    sizes = sizes_of(jobs[0], **given)
    table = columns("stage", "", "work", "GPU-hours", "disk", left=2)
    total: list[float | None] = []
    disk: list[float | None] = []
    own: set[str] = set()
    for planned in jobs:
        for step in planned.steps:
            key = f"{step.stage}/{step.artifact.key}"
            if key in own:
                continue
            own.add(key)
            if step.artifact.cached or key in seen:
                how = "in the store" if step.artifact.cached else "shared"
                table.add_row(_label(step, planned, jobs), how, "", "", "")
                continue
            found = work(step, planned.parts, sizes)
            took = hours(found, speeds)
            total.append(took)
            disk.append(found.disk)
            table.add_row(_label(step, planned, jobs), "to do", _amount(found), _hours(took), _bytes(found.disk))
    seen |= own
    table.add_row("", "", "", "", "")
    table.add_row("in all", f"{len(total)} of {len(own)} to do", "", _sum(total, _hours), _sum(disk, _bytes))
    say("")
    say(f"{experiment}: {len(jobs)} job{'s' if len(jobs) > 1 else ''}", "bold")
    for obstacle in dict.fromkeys(planned.obstacle for planned in jobs if planned.obstacle):
        say(f"It would not start here: {obstacle}")
    show(table)
    say(_reading(sizes))
    if any(kind not in speeds for kind in UNITS) and any(took is None for took in total):
        say(_asked(speeds))
    if sizes.parameters:
        say(f"While a model trains, a checkpoint takes another {_bytes(sizes.parameters * OPTIMISER_BYTES)}.")


def print_commands(commands: Mapping[str, Sequence[str]]) -> None:
    for name, words in commands.items():
        say(f"{name:<11} {shlex.join(words)}", wrap=False)
    if AGENTS in commands:
        say(f"{'':<11} wandb agent ID   # which that prints; once on each machine, with one store", wrap=False)


def _label(step: PlannedStage, planned: Planned, jobs: Sequence[Planned]) -> str:
    several = len({one.parts.negatives for one in jobs}) > 1
    measured = step.stage in ("evaluate", "divergence", "answers", "benchmark")
    own = step.stage == "align" or (measured and not step.label.endswith(" SFT"))
    return f"{step.label}, K = {planned.parts.negatives}" if several and own else step.label


def _amount(found: Work) -> str:
    if found.kind is None:
        return ""
    return UNKNOWN if found.amount is None else f"{_short(found.amount)} {UNITS[found.kind]}"


def _short(number: float) -> str:
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {sign}"
    return f"{number:.3g}"


def _hours(took: float | None) -> str:
    return UNKNOWN if took is None else "" if took == 0 else f"{took:.2f}" if took < 10 else f"{took:,.0f}"


def _bytes(size: float | None) -> str:
    if size is None:
        return UNKNOWN
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return "" if size == 0 else "< 1 MB"


def _sum(values: Sequence[float | None], write: Callable[[float], str]) -> str:
    known = [value for value in values if value is not None]
    told = write(sum(known)) or "0"
    if len(known) == len(values):
        return told
    return f"{told} and {UNKNOWN}" if sum(known) else UNKNOWN


def _reading(sizes: Sizes) -> str:
    if sizes.prompts is None:
        return "The data cannot be read here: give --prompts, --prompt-tokens, --response-tokens and --evaluated."
    lengths = [UNKNOWN if value is None else f"{value:.0f}" for value in (sizes.prompt_tokens, sizes.response_tokens)]
    return (
        f"Reckoned with {count(sizes.prompts)} training prompts of {lengths[0]} tokens and responses of {lengths[1]} "
        "(4 characters to a token, and sampled responses as long as targets, where the store does not know better)."
    )


def _asked(speeds: Mapping[str, float]) -> str:
    lacking = [kind for kind in UNITS if kind not in speeds]
    return (
        f"GPU-hours: no measured speed for {', '.join(lacking)} on this hardware. Give tokens/s per GPU, such as "
        f"--speed {lacking[0]}=N, or do a short run (data.train.limit=2000) and name its folder with --measured."
    )
