"""The jobs of a sweep, or of any set of runs, read back from their folders."""

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from selfcontrast.errors import FAILED, UserError
from selfcontrast.evaluation.statistics import holm, over_seeds, seeds_test
from selfcontrast.report.verdict import BASELINE, OURS, direction, measure_name, policy_row, sharper_rows

if TYPE_CHECKING:
    from selfcontrast.evaluation.compare import Row
    from selfcontrast.results import Result

# Of the config: what tells jobs apart without being a variant of the method.
OWN_COLUMNS = ("negatives", "seed", "label")
NO_VARIANT = ("name", "output", "store", "store_cache", "tracking", "engine", "published")  # of two runs of one job


@dataclass(frozen=True)
class SweepJob:
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
    def base(self) -> "Row":
        return next(row for row in self.result.comparison["rows"] if row["system"] == BASELINE)

    @property
    def row(self) -> "Row":
        """The policy's at the first decoding."""
        return policy_row(self.result.comparison["rows"])

    @property
    def align(self) -> dict[str, Any]:
        return self._stage("align")

    @property
    def used(self) -> float:
        """Negatives per prompt that training saw: fewer than K where prompts had no more."""
        return self._fact("align", "negatives_per_prompt")

    @property
    def tokens(self) -> float:
        """What preference training read in all its epochs, every prompt once for all of its responses."""
        return self._fact("align", "tokens")

    @property
    def sampled(self) -> float:
        """Tokens of all candidates, which the jobs of a sweep share."""
        return self._fact("generate", "tokens")

    @property
    def start(self) -> str:
        """Key of the fine-tuned model that it begins with."""
        return str(self._stage("sft").get("key", ""))

    @property
    def seconds(self) -> float:
        """Of all stages it is made from, shared with other jobs or not."""
        return sum(float(stage["seconds"]) for stage in self.result.stages)

    @property
    def outcome(self) -> str:
        """better, worse or level, by the corrected p-value: of many jobs some would differ by chance.

        Of the fine-tuned model alone: alone.
        """
        if "difference" not in self.row:
            return "alone"
        return direction({**self.row, "p_value": self.p_holm})

    def _stage(self, name: str) -> dict[str, Any]:
        unknown = {"seconds": float("nan"), "summary": {}}
        return next((stage for stage in self.result.stages if stage["name"] == name), unknown)

    def _fact(self, stage: str, name: str) -> float:
        return float(self._stage(stage)["summary"].get(name, float("nan")))


@dataclass(frozen=True)
class Point:
    """The jobs of one variant and K, one per seed: a point of the figure.

    Attributes:
        p_holm: `p_value`, corrected for the number of points.
    """

    jobs: Sequence[SweepJob]
    p_holm: float

    @property
    def variant(self) -> str:
        return self.jobs[0].variant

    @property
    def k(self) -> int:
        return self.jobs[0].result.negatives

    @property
    def p_value(self) -> float:
        """That the policy is the fine-tuned model's equal: over prompts for one seed, over seeds for several."""
        return p_value(self.jobs)

    def measured(self, name: str) -> Mapping[str, Any] | None:
        """`mean`, `difference` or `win_rate`: one job's with its interval over prompts; several's over seeds.

        None for the last two where the fine-tuned model stands alone.
        """
        found = [dict(job.row) for job in self.jobs]
        rows: list[Any] = [row[name] for row in found if name in row]
        if len(rows) < len(self.jobs):
            return None
        if len(rows) == 1:
            return dict(rows[0])
        least = -1.0 if self.jobs[0].result.comparison["measure"] != "score" else 0.0  # a cosine, or a score
        least, most = {"mean": (least, 1.0), "difference": (least - 1.0, 1.0 - least)}.get(name, (0.0, 1.0))
        estimates = [row["estimate"] for row in rows]
        return asdict(over_seeds(estimates, confidence=rows[0]["confidence"], least=least, most=most))

    @property
    def seeds(self) -> list[int]:
        return sorted({job.result.seed for job in self.jobs})

    def on(self, seeds: Collection[int]) -> "Point":
        """Restrict it to the jobs of these seeds."""
        return Point([job for job in self.jobs if job.result.seed in seeds], self.p_holm)


@dataclass(frozen=True)
class Missing:
    """A job that left no readable result; `why` is the error it ended with, "" where it did not say."""

    folder: str
    overrides: str
    why: str


@dataclass(frozen=True)
class Sweep:
    """Attributes:
    folder: where its report is written.
    sources: the folders that its jobs were found in.
    jobs: those that finished, by variant, K and seed.
    missing: those that did not.
    """

    folder: Path
    sources: Sequence[Path]
    jobs: list[SweepJob]
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

    @property
    def repeated(self) -> bool:
        """Whether any point has several jobs."""
        return any(len(point.jobs) > 1 for point in self.points)

    @cached_property
    def points(self) -> list[Point]:
        """By variant and K."""
        groups: dict[tuple[str, int], list[SweepJob]] = {}
        for job in self.jobs:
            groups.setdefault((job.variant, job.result.negatives), []).append(job)
        corrected = _holm([p_value(jobs) for jobs in groups.values()])
        return [Point(jobs, p) for jobs, p in zip(groups.values(), corrected, strict=True)]

    def of(self, variant: str) -> list[Point]:
        """A variant's points in the order of K."""
        return [point for point in self.points if point.variant == variant]

    @property
    def baselines(self) -> list[list[str]]:
        """Return the variants by the fine-tuned model that they begin with: those of other data have another.

        A model is known by its artifact's key. Where it was evaluated in two ways, its two scores are two baselines.
        """
        groups: list[tuple[dict[int, tuple[str, float]], list[str]]] = []
        for variant in self.variants:
            jobs = [job for job in self.jobs if job.variant == variant]
            own = {job.result.seed: (job.start, float(job.base["mean"]["estimate"])) for job in jobs}
            for known, members in groups:
                if all(known.get(seed, value) == value for seed, value in own.items()) and known.keys() & own.keys():
                    known.update(own)
                    members.append(variant)
                    break
            else:
                groups.append((own, [variant]))
        return [members for _, members in groups]


def read_sweep(sources: Sequence[Path], folder: Path | None = None) -> Sweep:
    """Every job in or below `sources`: a folder that holds a result, or Hydra's record of a job that left none.

    Args:
        folder: where the report is to be written; by default the only source.

    Raises:
        UserError: where the jobs do not measure the same thing.
    """
    from selfcontrast.results import Result  # imports torch

    begun = {path.resolve(): path for source in sources for path in _begun(source)}
    root = Path(os.path.commonpath([source.resolve() for source in sources]))
    found: dict[str, Result] = {}
    missing = []
    for own in sorted(begun, key=_natural):
        name = str(own.relative_to(root))
        try:
            if (own / FAILED).exists():  # beside what an earlier job left in the same folder
                raise OSError
            found[name] = Result.read(own)
        except (OSError, ValueError, TypeError):
            if _of_one_model(own):  # evaluate.py's
                continue
            missing.append(Missing(name, _own_overrides(own, begun), _why(own)))
    found = _distinct(found)
    _check_measure(found)
    names = variants({name: result.config for name, result in found.items()})
    corrected = _holm([policy_row(result.comparison["rows"]).get("p_value") for result in found.values()])
    jobs = [SweepJob(name, names[name], found[name], p) for name, p in zip(found, corrected, strict=True)]
    jobs.sort(key=lambda job: (not job.variant.startswith(OURS), job.variant, job.result.negatives, job.result.seed))
    return Sweep(folder or sources[0], sources, jobs, missing)


def p_value(jobs: Sequence[SweepJob]) -> float:
    if len(jobs) == 1:
        own = jobs[0].row.get("p_value")
        return float("nan") if own is None else float(own)
    if any("difference" not in job.row for job in jobs):  # fine-tuned models, which are compared with nothing
        return float("nan")
    return seeds_test([job.row["difference"]["estimate"] for job in jobs])


def variants(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Per job what it is: "objective.beta=0.1, sft.lr=0.002", with its method before that where methods differ; "" for
    none of it. Methods differ in many settings, which nobody wants listed: only those within a method are. A setting
    that is the seed in every job (`generator.seed: ${seed}`) tells nothing that the seed does not."""
    methods = {name: str(config.get("label", "")) for name, config in configs.items()}
    flat = {name: dict(_flatten(config)) for name, config in configs.items()}
    found = {}
    for name, settings in flat.items():
        peers = [other for other, method in methods.items() if method == methods[name]]
        differ = [
            key
            for key in settings
            if len({str(flat[peer].get(key)) for peer in peers}) > 1
            and any(flat[peer].get(key) != configs[peer].get("seed") for peer in peers)
        ]
        method = [methods[name]] if len(set(methods.values())) > 1 else []
        found[name] = ", ".join([*method, *(f"{key}={settings[key]}" for key in differ)])
    return found


def mean(jobs: Sequence[SweepJob], base: bool = False) -> float:
    """Of the policy's estimates over jobs; of the fine-tuned model's with `base`."""
    return sum(float((job.base if base else job.row)["mean"]["estimate"]) for job in jobs) / len(jobs)


def best(sweep: Sweep) -> Point:
    """Return the point with the highest mean, over the seeds that all points have, where there are such."""
    points, _ = comparable(sweep.points)
    return max(points, key=lambda point: mean(point.jobs))


def comparable(points: Sequence[Point]) -> tuple[list[Point], list[int]]:
    """Restrict points to the seeds that all of them have, and return those seeds.

    Of other seeds alone a point would be higher or lower because its fine-tuned model is. Where no seed is in all
    points they stay as they are, and the seeds are none.
    """
    shared = sorted(set.intersection(*(set(point.seeds) for point in points)))
    return ([point.on(shared) for point in points] if shared else list(points)), shared


def control_of(jobs: Sequence[SweepJob]) -> tuple[str, float] | None:
    """Name the fine-tuned model's best decoding among those sharper than the first, with its mean over the jobs."""
    rows = [row for job in jobs for row in sharper_rows(job.result.comparison["rows"])]
    means = {
        decoding: sum(own) / len(own)
        for decoding in dict.fromkeys(row["decoding"] for row in rows)
        if len(own := [float(row["mean"]["estimate"]) for row in rows if row["decoding"] == decoding]) == len(jobs)
    }
    return max(means.items(), key=lambda item: item[1], default=None)


def _begun(source: Path) -> Iterator[Path]:
    """The folders of jobs in or below a folder."""
    from selfcontrast.results import RESULT

    yield from (path.parent for path in source.rglob(RESULT))
    yield from (path.parent for path in source.rglob(".hydra") if path.is_dir())


def _of_one_model(folder: Path) -> bool:
    from selfcontrast.results import RESULT

    try:
        return "policy" not in json.loads((folder / RESULT).read_text())
    except (OSError, ValueError):
        return False


def _distinct(found: Mapping[str, "Result"]) -> dict[str, "Result"]:
    """Without runs that are another's repetition to the last digit: one measurement is not two."""
    seen: dict[str, str] = {}
    for name, result in found.items():
        own = {key: value for key, value in result.config.items() if key not in NO_VARIANT}
        told = [own, result.negatives, result.seed, result.comparison]
        seen.setdefault(json.dumps(told, sort_keys=True, default=str), name)
    return {name: found[name] for name in seen.values()}


def _check_measure(found: Mapping[str, "Result"]) -> None:
    by_measure = {result.comparison["measure"]: name for name, result in found.items()}
    if len(by_measure) > 1:
        told = ", ".join(f"{measure} ({name})" for measure, name in by_measure.items())
        raise UserError(f"these runs do not measure the same thing: {told}; report them apart")


def _holm(p_values: Iterable[float | None]) -> list[float]:
    """Corrected over those that are numbers; NaN for the others."""
    p = np.array([float("nan") if value is None else value for value in p_values])
    known = np.isfinite(p)
    p[known] = holm(p[known])
    return [float(value) for value in p]


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if prefix == "" and key in (*OWN_COLUMNS, *NO_VARIANT):
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
        return (job / FAILED).read_text(encoding="utf-8")
    except OSError:
        return ""


def _overrides(job: Path) -> list[str]:
    try:
        return list(yaml.safe_load((job / ".hydra" / "overrides.yaml").read_text(encoding="utf-8")) or [])
    except (OSError, yaml.YAMLError):
        return []


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """SweepJob 10 after job 9."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in path.parts]
