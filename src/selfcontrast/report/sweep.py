"""The jobs of a sweep, read back from their folders, as one table."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import yaml

from selfcontrast.errors import FAILED
from selfcontrast.evaluation.statistics import holm
from selfcontrast.report import text
from selfcontrast.report.verdict import BASELINE, direction, measure_name, policy_row

if TYPE_CHECKING:
    from selfcontrast.results import Result

# Of the config: what tells jobs apart without being a variant of the method.
OWN_COLUMNS = ("negatives", "seed", "name", "method", "output", "store", "tracking")


UNKNOWN = dict.fromkeys(("estimate", "low", "high"), math.nan)  # of what a job without a policy does not have
HEADS = ("difference from SFT", "wins", "p", "Holm", "used", "align")  # of `numbers`, after the measure's own name


@dataclass(frozen=True)
class Job:
    """A finished job.

    Attributes:
        folder: below the sweep's.
        variant: the method, where jobs differ in it, and the settings, other than K and the seed, in which the jobs of
            a method differ.
        result: what it left.
        p_holm: its p-value, corrected for there being as many tests as jobs; NaN where it has none.
    """

    folder: str
    variant: str
    result: "Result"
    p_holm: float

    @property
    def base(self) -> dict[str, Any]:
        return next(row for row in self.result.comparison["rows"] if row["system"] == BASELINE)

    @property
    def row(self) -> dict[str, Any]:
        """The policy's at the first decoding."""
        return policy_row(self.result.comparison["rows"])

    @property
    def align(self) -> dict[str, Any]:
        unknown = {"seconds": float("nan"), "summary": {}}
        return next((stage for stage in self.result.stages if stage["name"] == "align"), unknown)

    @property
    def used(self) -> float:
        """Negatives per prompt that training saw: fewer than K where prompts had no more."""
        return float(self.align["summary"].get("negatives_per_prompt", float("nan")))

    @property
    def outcome(self) -> str:
        """better, worse or level, by the corrected p-value: of many jobs some would differ by chance.

        Of the fine-tuned model alone: alone.
        """
        if "difference" not in self.row:
            return "alone"
        return direction({**self.row, "p_value": self.p_holm})


@dataclass(frozen=True)
class Missing:
    """A job that left no readable result; `why` is the error it ended with, "" where it did not say."""

    folder: str
    overrides: str
    why: str


@dataclass(frozen=True)
class Sweep:
    """Attributes:
    folder: of the sweep.
    jobs: those that finished, by variant, K and seed.
    missing: those that did not.
    """

    folder: Path
    jobs: list[Job]
    missing: list[Missing]

    @property
    def variants(self) -> list[str]:
        return list(dict.fromkeys(job.variant for job in self.jobs))

    @property
    def measure(self) -> str:
        return measure_name(self.jobs[0].result)

    @property
    def proxy(self) -> bool:
        return bool(self.jobs[0].result.comparison["measure"] != "score")

    @property
    def decoding(self) -> str:
        return str(self.jobs[0].base["decoding"])

    @property
    def seeds(self) -> list[int]:
        return sorted({job.result.seed for job in self.jobs})

    def by_k(self, variant: str) -> Iterator[tuple[int, list[Job]]]:
        """K and its jobs, one per seed, in the order of K."""
        own = [job for job in self.jobs if job.variant == variant]
        for k in sorted({job.result.negatives for job in own}):
            yield k, [job for job in own if job.result.negatives == k]


def read_sweep(folder: Path) -> Sweep:
    """Every job below `folder`: a folder that holds a result, or Hydra's record of a job that left none."""
    from selfcontrast.results import RESULT, Result  # imports torch

    begun = {path.parent for path in folder.rglob(".hydra") if path.is_dir()}
    begun |= {path.parent for path in folder.rglob(RESULT)}
    found: dict[str, Result] = {}
    missing = []
    for own in sorted(begun, key=_natural):
        name = str(own.relative_to(folder))
        try:
            found[name] = Result.read(own)
        except (OSError, ValueError, TypeError):
            missing.append(Missing(name, _own_overrides(own, begun), _why(own)))
    names = variants({name: result.config for name, result in found.items()})
    corrected = _holm([policy_row(result.comparison["rows"]).get("p_value") for result in found.values()])
    jobs = [Job(name, names[name], found[name], p) for name, p in zip(found, corrected, strict=True)]
    jobs.sort(key=lambda job: (job.variant, job.result.negatives, job.result.seed))
    return Sweep(folder, jobs, missing)


def variants(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Per job what it is: "objective.beta=0.1, sft.lr=0.002", with its method before that where methods differ; "" for
    none of it. Methods differ in many settings, which nobody wants listed: only those within a method are."""
    methods = {name: str(config.get("method", "")) for name, config in configs.items()}
    flat = {name: dict(_flatten(config)) for name, config in configs.items()}
    found = {}
    for name, settings in flat.items():
        peers = [flat[other] for other, method in methods.items() if method == methods[name]]
        differ = [key for key in settings if len({str(peer.get(key)) for peer in peers}) > 1]
        method = [methods[name]] if len(set(methods.values())) > 1 else []
        found[name] = ", ".join([*method, *(f"{key}={settings[key]}" for key in differ)])
    return found


def frame(sweep: Sweep) -> pd.DataFrame:
    """One row per job: what `results.csv` holds."""
    rows = []
    for job in sweep.jobs:
        row: dict[str, Any] = {"job": job.folder, "variant": job.variant, "negatives": job.result.negatives}
        row |= {"seed": job.result.seed, "decoding": job.base["decoding"]}
        row |= _bounds(job.result.comparison["measure"], job.row["mean"]) | _bounds("sft", job.base["mean"])
        row |= _bounds("difference", job.row.get("difference")) | _bounds("win_rate", job.row.get("win_rate"))
        row |= {"p_value": job.row.get("p_value"), "p_holm": job.p_holm}
        row |= {"surprise": job.row["surprise"], "tokens": job.row["tokens"]}
        row |= {"negatives_per_prompt": job.used, "prompts_aligned": job.align["summary"].get("prompts")}
        row |= {f"align_{name}": job.align["summary"].get(name) for name in ("steps", "tokens")}
        row |= {"align_seconds": job.align["seconds"], "policy": job.result.policy}
        row["seconds"] = sum(stage["seconds"] for stage in job.result.stages)  # of all it is made from, shared or not
        row["seconds_own"] = sum(stage["seconds"] for stage in job.result.stages if not stage["cached"])
        rows.append(row)
    return pd.DataFrame(rows)


def mean(jobs: Sequence[Job], base: bool = False) -> float:
    """Of the policy's estimates over jobs; of the fine-tuned model's with `base`."""
    return sum(float((job.base if base else job.row)["mean"]["estimate"]) for job in jobs) / len(jobs)


def numbers(jobs: Sequence[Job]) -> list[str]:
    """As `HEADS`: one job's with its intervals; the means over several seeds with their range."""
    if len(jobs) == 1:
        row = jobs[0].row
        shown = [text.interval(row["mean"]), text.interval(row.get("difference"), signed=True)]
        p_values = [text.p_value(p) for p in (row.get("p_value"), jobs[0].p_holm)]
        shown += [text.percent(row.get("win_rate", UNKNOWN)["estimate"]), *p_values]
    else:
        wins = sum(job.row.get("win_rate", UNKNOWN)["estimate"] for job in jobs) / len(jobs)
        shown = [
            _range(jobs, "mean"),
            _range(jobs, "difference", signed=True),
            text.percent(wins),
            text.NONE,
            text.NONE,
        ]
    used = sum(job.used for job in jobs) / len(jobs)
    seconds = sum(job.align["seconds"] for job in jobs) / len(jobs)
    return [*shown, text.number(used, 1), text.duration(seconds)]


def _holm(p_values: Sequence[float | None]) -> list[float]:
    """Corrected over those that are numbers; NaN for the others."""
    p = np.array([float("nan") if value is None else value for value in p_values])
    known = np.isfinite(p)
    p[known] = holm(p[known])
    return [float(value) for value in p]


def _range(jobs: Sequence[Job], name: str, signed: bool = False) -> str:
    values = [float(job.row.get(name, UNKNOWN)["estimate"]) for job in jobs]
    if not all(map(math.isfinite, values)):
        return text.NONE
    found = (sum(values) / len(values), min(values), max(values))
    middle, low, high = (text.number(value, signed=signed) for value in found)
    return f"{middle} ({low} to {high})"


def _bounds(name: str, value: Mapping[str, Any] | None) -> dict[str, float]:
    value = value or UNKNOWN
    return {name: value["estimate"], f"{name}_low": value["low"], f"{name}_high": value["high"]}


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if prefix == "" and key in OWN_COLUMNS:
            continue
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        elif key != "_target_":
            yield f"{prefix}{key}", value


def _own_overrides(job: Path, jobs: Collection[Path]) -> str:
    """What the job was told on the command line and not every other job was: "negatives=99"."""
    told = {own: _overrides(own) for own in jobs}
    common = set.intersection(*map(set, told.values())) if len(told) > 1 else set()
    return " ".join(override for override in told[job] if override not in common)


def _why(job: Path) -> str:
    try:
        return (job / FAILED).read_text()
    except OSError:
        return ""


def _overrides(job: Path) -> list[str]:
    try:
        return list(yaml.safe_load((job / ".hydra" / "overrides.yaml").read_text()) or [])
    except (OSError, yaml.YAMLError):
        return []


def _natural(path: Path) -> tuple[int, int, str]:
    """Job 10 after job 9."""
    return (0, int(path.name), "") if path.name.isdigit() else (1, 0, str(path))
