"""Estimate the hours of a plan's stages from measured speeds.

Speeds are per device. They come from --speed, from a file that names their source, or from a finished run. Without a
speed the hours are unknown.
"""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from selfcontrast.errors import UserError
from selfcontrast.planning.work import Work

SPEEDS = ("train", "generate", "score", "embed")


def measured(run: Path) -> dict[str, float]:
    """Return the speeds per device of a finished run: medians over training steps, means over other stages.

    The speed `train` is that of preference training; without it, that of SFT.

    Raises:
        UserError: if the folder has no result.
    """
    try:
        result = json.loads((run / "result.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--measured {run}: no result.json. Give the folder of a finished run.") from error
    hardware = result["config"]["hardware"]
    devices = int(hardware["devices"]) * int(hardware["num_nodes"])
    speeds: dict[str, float] = {}
    for stage in ("sft", "align"):
        by_step = [r["tokens_per_second"] for r in result["histories"].get(stage, []) if "tokens_per_second" in r]
        if by_step:
            speeds["train"] = statistics.median(by_step) / devices
    workers = _workers(result["config"])
    stages = {stage["name"]: stage for stage in result["stages"] if stage["seconds"] and not stage["resumed"]}
    generated = stages.get("generate", {"summary": {}})
    if tokens := generated["summary"].get("tokens"):
        speeds["generate"] = tokens / generated["seconds"] / workers
    if "embed" in stages and (responses := generated["summary"].get("responses")):
        speeds["embed"] = (responses + generated["summary"]["prompts"]) / stages["embed"]["seconds"] / workers
    if "reference" in stages and (tokens := stages["reference"]["summary"].get("tokens")):
        speeds["score"] = tokens / stages["reference"]["seconds"] / workers
    return speeds


def _workers(config: Mapping[str, Any]) -> float:
    """Return how many devices sampled, embedded and scored in parallel: the most Ray actors, times their GPUs."""
    actors = config.get("engine", {}).get("actors", 1)
    count = max(actors) if isinstance(actors, list) else actors
    gpus = config.get("engine", {}).get("gpus_per_actor")
    return float(count * (1 if gpus in (None, 0) else gpus))


def from_file(file: Path, hardware: str) -> dict[str, float]:
    """Read the speeds of this hardware from a file with entries `{hardware, model, source, speeds}`.

    Raises:
        UserError: if the file cannot be read, or lacks the hardware or its source.
    """
    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{file}: cannot be read ({error}). Name a YAML file of speeds.") from error
    by_hardware = {str(entry["hardware"]): entry for entry in entries or []}
    if hardware not in by_hardware:
        known = ", ".join(by_hardware) or "nothing"
        raise UserError(
            f"--hardware {hardware}: not in {file}, which has {known}. Name one, or add it with its source."
        )
    if not by_hardware[hardware].get("source"):
        raise UserError(f"{file}: {hardware} has no source. Name where its speeds can be looked up.")
    return checked(by_hardware[hardware]["speeds"])


def checked(speeds: Mapping[str, Any]) -> dict[str, float]:
    """Return the speeds. Raise `UserError` if a name is unknown or a value is not a positive number."""
    for name, value in speeds.items():
        if name not in SPEEDS or not isinstance(value, int | float) or value <= 0:
            raise UserError(
                f"speed {name}={value}: the name must be one of {', '.join(SPEEDS)}, "
                "the value a positive number per second and device."
            )
    return {name: float(value) for name, value in speeds.items()}


def hours(needed: Work, speeds: Mapping[str, float]) -> float | None:
    """Return the device-hours; None if the speed or the amount is unknown."""
    if needed.kind is None:
        return 0.0
    if needed.amount is None or needed.kind not in speeds:
        return None
    return needed.amount / speeds[needed.kind] / 3600
