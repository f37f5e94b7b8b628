"""Write GPU results into RESULTS.md: the first line, and the section between two marks.

    python benchmarks/gpu_report.py        # after a new file in benchmarks/results

Each file in that folder holds a run of `gpu_check.py` on a GPU. The tables have no other source.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS, REPORT = HERE / "results", HERE / "RESULTS.md"
BEGIN, END = "<!-- begin: gpu_report.py -->", "<!-- end: gpu_report.py -->"
# Parts of the check, by the prefix of their steps' names.
PARTS = {
    "gradients": "gradients of attention=varlen",
    "speed": "speed of varlen beside the baselines",
    "ragged job": "a job on ragged lengths",
    "SIGTERM": "the end after SIGTERM",
    "host waits": "the count of host waits",
    "training loop": "the training loop at 7B",
    "loop": "selective checkpointing, bf16 copies and micro-batches that fill the memory",
    "QLoRA": "the memory of QLoRA at 7B",
    "compiled": "compiled layers",
    "gradients of flex": "gradients of attention=flex",
    "flex": "speed of attention=flex",
    "options of flex": "kernel options of attention=flex",
}
OUTSIDE = "training on several GPUs, sampling with vLLM"


def first_line(runs: Sequence[dict[str, Any]]) -> str:
    """Return the line that names the parts not yet run on a GPU."""
    done = [name for run in runs for name, step in run["steps"].items() if "rows" in step]
    missing = [text for part, text in PARTS.items() if not any(re.match(rf"{part}( [\d r]|$)", name) for name in done)]
    missing.append(f"{OUTSIDE} (outside of `make gpu-check`)")
    return f"**Not yet run on a GPU with the current code**: {'; '.join(missing)}."


def section(runs: Sequence[dict[str, Any]]) -> str:
    """Return the tables of all runs, the newest first."""
    if not runs:
        return "No results yet: copy the file that `make gpu-check` writes to `benchmarks/results`."
    parts = []
    for run in sorted(runs, key=lambda run: str(run["date"]), reverse=True):
        versions = ", ".join(f"{name} {version or 'absent'}" for name, version in run["versions"].items())
        parts.append(f"{run['date']}. {run['device']}, Python {run['python']}, {versions}, commit {run['commit']}.")
        parts += [as_table(name, step) for name, step in run["steps"].items()]
    return "\n".join(parts)


def update(report: str, runs: Sequence[dict[str, Any]]) -> str:
    """Replace the first line and the section of RESULTS.md."""
    before, _, rest = report.partition(BEGIN)
    _, _, after = rest.partition(END)
    body = before.partition("\n")[2]
    return f"{first_line(runs)}\n{body}{BEGIN}\n{section(runs)}\n{END}{after}"


def as_table(title: str, step: dict[str, Any]) -> str:
    """Return one step's rows as a Markdown table, or the reason why there are none."""
    seconds = f" ({step['seconds']} s)" if "seconds" in step else ""
    head = f"\n### {title}{seconds}\n"
    if "rows" not in step:
        return f"{head}\n{step.get('error') or step.get('skipped')}"
    columns = list(dict.fromkeys(column for row in step["rows"] for column in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(column)) for column in columns) + " |" for row in step["rows"]]
    return "\n".join([head, *lines])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.2e}" if value and abs(value) < 1e-3 else f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def read_runs() -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))]


if __name__ == "__main__":
    REPORT.write_text(update(REPORT.read_text(), read_runs()))
