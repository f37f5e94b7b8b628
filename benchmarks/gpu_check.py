"""Check and measure the GPU path: at most eight minutes, random weights, no download.

    make gpu-check                                    # on a GPU, or with tiny sizes on the CPU if there is no GPU
    python benchmarks/gpu_check.py --seconds 300 --output benchmarks/results/h200.json

It needs torch, transformers and lightning. TRL is a baseline if it is installed; QLoRA needs peft and bitsandbytes.
Steps run in the order of their value, and the results file is written after each, so an interruption keeps all finished
steps. A failed or too slow step is recorded, and the next one runs. The steps "speed" also measure the baselines:

- pairs: 2K padded rows per prompt, SDPA, logits of response positions only;
- unpadded rows: each response with its own copy of the prompt, in one causal variable-length call, without padding;
- TRL: the loss of TRL's DPOTrainer.

The bounds are ratios of token counts: 2K(P+R) / (P+(K+1)R) against pairs, (K+1)(P+R) / (P+(K+1)R) against rows.
"""

import argparse
import faulthandler
import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any

from gpu_report import as_table
from gpu_setting import Setting, SkipStep, stand_in_for_file_formats

Rows = list[dict[str, Any]]
Measure = Callable[[Setting], Rows]
Case = tuple[int, int, int] | str

ROOT = Path(__file__).parents[1]
STEP_SECONDS = 120  # limit of one step
MIN_STEP_SECONDS = 10  # no step starts with less time than this


def steps(setting: Setting) -> dict[str, Measure]:
    """Return all steps by name, the most valuable first."""
    from gpu_gradients import gradient_errors
    from gpu_job import ragged_job
    from gpu_loop import CHANGES, training_loop, with_changes
    from gpu_speed import RAGGED, kernel_options, speeds
    from gpu_stop import seconds_to_exit
    from gpu_sync import host_waits
    from qlora_memory import qlora_memory

    cases: list[Case] = [*setting.shapes, RAGGED]
    first = {f"speed {_name(case)}": partial(speeds, case, ("varlen",), True) for case in cases}
    rest: dict[str, Measure] = {}
    if not setting.tiny:  # on a CPU FlexAttention has no backward pass, and compiling is slow
        rest = {f"compiled {_name(case)}": partial(speeds, case, ("compiled",), False) for case in cases}
        rest["gradients of flex"] = partial(gradient_errors, ("flex",))
        rest |= {f"flex {_name(case)}": partial(speeds, case, ("flex",), False) for case in cases}
        rest["options of flex"] = kernel_options
    return {
        "gradients": partial(gradient_errors, ("varlen", "masked")),
        **first,
        "ragged job": ragged_job,
        "SIGTERM": seconds_to_exit,
        "host waits": host_waits,
        "training loop": training_loop,
        **{f"loop {i} {name}": partial(with_changes, name) for i, name in enumerate(CHANGES, start=1)},
        "QLoRA 7B": qlora_memory,
        **rest,
    }


def _name(case: Case) -> str:
    return case if isinstance(case, str) else ",".join(map(str, case))


class StepTimeout(Exception):
    """A step exceeded its time limit."""


def run(setting: Setting, output: Path, seconds: float, results: dict[str, Any]) -> None:
    """Run the steps that `results` lacks, and write it after each."""
    deadline = time.monotonic() + seconds
    for name, measure in steps(setting).items():
        remaining = deadline - time.monotonic()
        if name in results["steps"]:
            continue
        if remaining < MIN_STEP_SECONDS:
            results["steps"][name] = {"skipped": "no time left"}
        else:
            start = time.monotonic()
            results["steps"][name] = _run_step(measure, setting, int(min(remaining, STEP_SECONDS)))
            results["steps"][name]["seconds"] = round(time.monotonic() - start, 1)
        partial_file = output.with_suffix(".writing")
        partial_file.write_text(json.dumps(results, indent=1) + "\n")
        os.replace(partial_file, output)
        print(as_table(name, results["steps"][name]), flush=True)
        if "CUDA error" in results["steps"][name].get("error", ""):  # this process cannot use the GPU any more
            arguments = ["--output", str(output), "--seconds", str(deadline - time.monotonic()), "--resume"]
            os.execv(sys.executable, [sys.executable, str(Path(__file__).resolve()), *arguments])


def _run_step(measure: Measure, setting: Setting, limit: int) -> dict[str, Any]:
    import torch

    def give_up(number: int, frame: FrameType | None) -> None:
        raise StepTimeout(f"given up after {limit} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(limit)
    try:
        return {"rows": measure(setting)}
    except SkipStep as reason:
        return {"skipped": str(reason)}
    except Exception as error:  # the next step may still work
        return {"error": f"{type(error).__name__}: {error}"[:600]}
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        gc.collect()  # trainer and module reference each other
        if setting.device == "cuda":
            torch.cuda.empty_cache()


def circumstances(device: str) -> dict[str, Any]:
    """Return the environment that the numbers depend on."""
    import torch

    versions: dict[str, str | None] = {}
    for package in ("torch", "transformers", "lightning", "trl", "peft", "bitsandbytes"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU, tiny sizes",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "python": sys.version.split()[0],
        "versions": versions,
        "commit": os.environ.get("SELFCONTRAST_COMMIT") or git.stdout.strip() or None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--seconds", type=float, default=480, help="time limit; steps that do not fit are skipped")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "gpu_check.json")
    parser.add_argument("--resume", action="store_true", help="keep the steps already in the output")
    args = parser.parse_args()
    faulthandler.dump_traceback_later(args.seconds + 30, exit=True)  # works even if signals are blocked
    stand_in_for_file_formats()
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    results = {**circumstances(device), "steps": {}}
    if args.resume and args.output.exists():
        results["steps"] = json.loads(args.output.read_text())["steps"]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    print(", ".join(f"{name} {value}" for name, value in results.items() if name != "steps"), flush=True)
    run(Setting.on(device), args.output, args.seconds, results)
    print(f"results: {args.output}")
    failed = [name for name, step in results["steps"].items() if "error" in step]
    outside_limits = [
        name for name, step in results["steps"].items() if not all(r.get("ok", True) for r in step.get("rows", []))
    ]
    if failed or outside_limits:
        sys.exit(f"failed: {', '.join(failed) or 'none'}; outside their limits: {', '.join(outside_limits) or 'none'}")


if __name__ == "__main__":
    main()
