"""Read the jobs of a sweep, or of any set of runs, from their folders."""

import json
import os
from collections import Counter
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

# Settings that differ between jobs without making a variant of the method.
OWN_COLUMNS = ("negatives", "seed", "label")
# Settings that may differ between two runs of the same job.
NO_VARIANT = ("name", "output", "store", "store_cache", "tracking", "engine", "published")


@dataclass(frozen=True)
class SweepJob:
    """A finished job.

    Attributes:
        folder: the job's folder, relative to the folder of all jobs.
        variant: the method, if methods differ, and the settings in which jobs of the same method differ, without K and
            seed.
        result: the content of the job's result.json.
        p_holm: the job's p-value, corrected for the number of jobs (Holm); NaN without a p-value.
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
        """Return the policy's row at the first decoding."""
        return policy_row(self.result.comparison["rows"])

    @property
    def align(self) -> dict[str, Any]:
        return self._stage("align")

    @property
    def negatives_used(self) -> float:
        """Return the mean negatives per prompt in training: fewer than K if prompts had fewer."""
        return self._fact("align", "negatives_per_prompt")

    @property
    def tokens(self) -> float:
        """Return the tokens that preference training read in all epochs; a prompt counts once for all its responses."""
        return self._fact("align", "tokens")

    @property
    def sampled_tokens(self) -> float:
        """Return the tokens of all candidates, which the jobs of a sweep share."""
        return self._fact("generate", "tokens")

    @property
    def sft_key(self) -> str:
        """Return the key of the SFT model that the job starts from."""
        return str(self._stage("sft").get("key", ""))

    @property
    def seconds(self) -> float:
        """Return the time of all its stages, even of those that it shares with other jobs."""
        return sum(float(stage["seconds"]) for stage in self.result.stages)

    def _stage(self, name: str) -> dict[str, Any]:
        unknown = {"seconds": float("nan"), "summary": {}}
        return next((stage for stage in self.result.stages if stage["name"] == name), unknown)

    def _fact(self, stage: str, name: str) -> float:
        return float(self._stage(stage)["summary"].get(name, float("nan")))


@dataclass(frozen=True)
class Point:
    """A point of the figure: the jobs of one variant and K, one per seed.

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
        """Test that the policy equals SFT: over prompts for one seed, over seeds for several."""
        return p_value(self.jobs)

    @property
    def outcome(self) -> str:
        """Return "better", "worse" or "level" by the corrected p-value; "alone" without a policy.

        The p-value is corrected because, of many points, some differ by chance.
        """
        difference = self.measured("difference")
        return direction(difference, self.p_holm) if difference else "alone"

    def measured(self, name: str) -> Mapping[str, Any] | None:
        """Return `mean`, `difference` or `win_rate`, with an interval over prompts for one job, over seeds for several.

        Return None for `difference` and `win_rate` if there is no policy.
        """
        rows: list[Any] = [dict(job.row)[name] for job in self.jobs if name in job.row]
        if len(rows) < len(self.jobs):
            return None
        if len(rows) == 1:
            return dict(rows[0])
        low = -1.0 if self.jobs[0].result.comparison["measure"] != "score" else 0.0  # a cosine, or a score
        minimum, maximum = {"mean": (low, 1.0), "difference": (low - 1.0, 1.0 - low)}.get(name, (0.0, 1.0))
        estimates = [row["estimate"] for row in rows]
        return asdict(over_seeds(estimates, confidence=rows[0]["confidence"], minimum=minimum, maximum=maximum))

    @property
    def seeds(self) -> list[int]:
        return sorted({job.result.seed for job in self.jobs})

    def on(self, seeds: Collection[int]) -> "Point":
        """Return the point restricted to the jobs of these seeds."""
        return Point([job for job in self.jobs if job.result.seed in seeds], self.p_holm)


@dataclass(frozen=True)
class Missing:
    """A job that left no readable result; `why` is its error, "" if unknown."""

    folder: str
    overrides: str
    why: str


@dataclass(frozen=True)
class Sweep:
    """A set of jobs that one report covers.

    Attributes:
        folder: where the report is written.
        sources: the folders in which the jobs were found.
        jobs: the finished jobs, by variant, K and seed.
        missing: the jobs that did not finish.
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
        """Return whether any point has several jobs."""
        return any(len(point.jobs) > 1 for point in self.points)

    @cached_property
    def points(self) -> list[Point]:
        """Return the jobs grouped by variant and K."""
        groups: dict[tuple[str, int], list[SweepJob]] = {}
        for job in self.jobs:
            groups.setdefault((job.variant, job.result.negatives), []).append(job)
        corrected = _holm([p_value(jobs) for jobs in groups.values()])
        return [Point(jobs, p) for jobs, p in zip(groups.values(), corrected, strict=True)]

    def of(self, variant: str) -> list[Point]:
        """Return a variant's points in the order of K."""
        return [point for point in self.points if point.variant == variant]

    @property
    def baselines(self) -> list[list[str]]:
        """Group the variants by the SFT model that they start from: variants with other data have another SFT model.

        A model is identified by its artifact's key. If it was evaluated in two ways, its two scores are two baselines.
        """
        groups: list[tuple[dict[int, tuple[str, float]], list[str]]] = []
        for variant in self.variants:
            jobs = [job for job in self.jobs if job.variant == variant]
            scores = {job.result.seed: (job.sft_key, float(job.base["mean"]["estimate"])) for job in jobs}
            for group_scores, members in groups:
                if (
                    all(group_scores.get(seed, value) == value for seed, value in scores.items())
                    and group_scores.keys() & scores.keys()
                ):
                    group_scores.update(scores)
                    members.append(variant)
                    break
            else:
                groups.append((scores, [variant]))
        return [members for _, members in groups]


def read_sweep(sources: Sequence[Path], folder: Path | None = None) -> Sweep:
    """Read every job in or below `sources`: each folder with a result, or with Hydra's record of a job.

    Args:
        folder: where the report will be written; by default the only source.

    Raises:
        UserError: if the jobs do not measure the same thing.
    """
    from selfcontrast.results import Result  # imports torch

    job_folders = {path.resolve(): path for source in sources for path in _job_folders(source)}
    root = Path(os.path.commonpath([source.resolve() for source in sources]))
    results: dict[str, Result] = {}
    missing = []
    for job_folder in sorted(job_folders, key=_natural):
        name = str(job_folder.relative_to(root))
        try:
            if (job_folder / FAILED).exists():  # a result in this folder is from an earlier job
                raise OSError
            results[name] = Result.read(job_folder)
        except (OSError, ValueError, TypeError):
            if _is_evaluation(job_folder):
                continue
            missing.append(Missing(name, _own_overrides(job_folder, job_folders), _error(job_folder)))
    results = _distinct(results)
    _check_measure(results)
    names = _apart(variants({name: result.config for name, result in results.items()}), results)
    corrected = _holm([policy_row(result.comparison["rows"]).get("p_value") for result in results.values()])
    jobs = [SweepJob(name, names[name], results[name], p) for name, p in zip(results, corrected, strict=True)]
    jobs.sort(key=lambda job: (not job.variant.startswith(OURS), job.variant, job.result.negatives, job.result.seed))
    return Sweep(folder or sources[0], sources, jobs, missing)


def p_value(jobs: Sequence[SweepJob]) -> float:
    if len(jobs) == 1:
        p = jobs[0].row.get("p_value")
        return float("nan") if p is None else float(p)
    if any("difference" not in job.row for job in jobs):  # jobs without a policy
        return float("nan")
    return seeds_test([job.row["difference"]["estimate"] for job in jobs])


def variants(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return each job's variant: the settings that differ, such as "objective.beta=0.1, sft.lr=0.002"; "" if none do.

    A chosen class is a setting: "filter.selector=Random". Its own settings are compared only between jobs with the
    same class. If methods differ, the variant begins with the method. Then only settings that differ within the method
    follow, since methods differ in many settings. A setting that equals the seed in every job (`generator.seed:
    ${seed}`) is left out.
    """
    methods = {name: str(config.get("label", "")) for name, config in configs.items()}
    flat = {name: dict(_flatten(config)) for name, config in configs.items()}
    differs: dict[tuple[str | None, ...], bool] = {}  # by key, method and classes, so that large sweeps stay fast
    names = {}
    for name, settings in flat.items():
        differ = []
        for key in settings:
            parts = key.split(".")
            sections = [".".join(parts[:end]) for end in range(1, len(parts))]
            group = (key, methods[name], *(settings.get(section) for section in sections))
            if group not in differs:
                peers = [
                    other
                    for other, values in flat.items()
                    if methods[other] == methods[name] and all(values.get(s) == settings.get(s) for s in sections)
                ]
                differs[group] = len({str(flat[peer].get(key)) for peer in peers}) > 1 and any(
                    flat[peer].get(key) != configs[peer].get("seed") for peer in peers
                )
            if differs[group]:
                differ.append(key)
        method = [methods[name]] if len(set(methods.values())) > 1 else []
        names[name] = ", ".join([*method, *(f"{key}={settings[key]}" for key in differ)])
    return names


def _apart(names: Mapping[str, str], results: Mapping[str, "Result"]) -> dict[str, str]:
    """Add its folder to the variant of each job that has another's variant, K and seed: they are not two seeds."""
    points = {name: (names[name], result.negatives, result.seed) for name, result in results.items()}
    count = Counter(points.values())
    return {
        name: ", ".join(filter(None, [variant, f"run {name}"])) if count[points[name]] > 1 else variant
        for name, variant in names.items()
    }


def mean(jobs: Sequence[SweepJob], base: bool = False) -> float:
    """Return the mean of the policy's estimates over jobs; with `base`, the mean of SFT's estimates."""
    return sum(float((job.base if base else job.row)["mean"]["estimate"]) for job in jobs) / len(jobs)


def best(sweep: Sweep) -> Point:
    """Return the point with the highest mean, over the seeds that all points have, if there are any."""
    points, _ = comparable(sweep.points)
    return max(points, key=lambda point: mean(point.jobs))


def point_name(sweep: Sweep, point: Point) -> str:
    """Return K, with the variant if there are several: "K=8", "random (K=8)"."""
    return f"{point.variant} (K={point.k})" if len(sweep.variants) > 1 else f"K={point.k}"


def comparable(points: Sequence[Point]) -> tuple[list[Point], list[int]]:
    """Restrict points to the seeds that all of them have, and return those seeds.

    With other seeds, a point may be higher only because its SFT model is. If the points share no seed, return them
    unchanged, with an empty list.
    """
    shared = sorted(set.intersection(*(set(point.seeds) for point in points)))
    return ([point.on(shared) for point in points] if shared else list(points)), shared


def control_of(jobs: Sequence[SweepJob]) -> tuple[str, float] | None:
    """Return SFT's best decoding among the decodings sharper than the first, with its mean over the jobs."""
    rows = [row for job in jobs for row in sharper_rows(job.result.comparison["rows"])]
    means = {
        decoding: sum(scores) / len(scores)
        for decoding in dict.fromkeys(row["decoding"] for row in rows)
        if len(scores := [float(row["mean"]["estimate"]) for row in rows if row["decoding"] == decoding]) == len(jobs)
    }
    return max(means.items(), key=lambda item: item[1], default=None)


def _job_folders(source: Path) -> Iterator[Path]:
    """Yield the folders of jobs, finished or not, in or below a folder."""
    from selfcontrast.results import RESULT

    yield from (path.parent for path in source.rglob(RESULT))
    yield from (path.parent for path in source.rglob(".hydra") if path.is_dir())


def _is_evaluation(folder: Path) -> bool:
    """Return whether the folder holds a result of evaluate.py, which measures a single model."""
    from selfcontrast.results import RESULT

    try:
        return "policy" not in json.loads((folder / RESULT).read_text())
    except (OSError, ValueError):
        return False


def _distinct(results: Mapping[str, "Result"]) -> dict[str, "Result"]:
    """Drop runs that repeat another run to the last digit, since the two are one measurement."""
    name_of: dict[str, str] = {}
    for name, result in results.items():
        config = {key: value for key, value in result.config.items() if key not in NO_VARIANT}
        content = [config, result.negatives, result.seed, result.comparison]
        name_of.setdefault(json.dumps(content, sort_keys=True, default=str), name)
    return {name: results[name] for name in name_of.values()}


def _check_measure(results: Mapping[str, "Result"]) -> None:
    by_measure = {result.comparison["measure"]: name for name, result in results.items()}
    if len(by_measure) > 1:
        measures = ", ".join(f"{measure} ({name})" for measure, name in by_measure.items())
        raise UserError(f"These runs do not measure the same thing: {measures}. Report them separately.")


def _holm(p_values: Iterable[float | None]) -> list[float]:
    """Correct p-values by Holm; None and NaN become NaN and do not count."""
    p = np.array([float("nan") if value is None else value for value in p_values])
    finite = np.isfinite(p)
    p[finite] = holm(p[finite])
    return [float(value) for value in p]


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if prefix == "" and key in (*OWN_COLUMNS, *NO_VARIANT):
            continue
        if isinstance(value, Mapping):
            if "_target_" in value:
                yield f"{prefix}{key}", str(value["_target_"]).rpartition(".")[2]
            yield from _flatten(value, f"{prefix}{key}.")
        elif key != "_target_":
            yield f"{prefix}{key}", value


def _own_overrides(job: Path, jobs: Collection[Path]) -> str:
    """Return those overrides of a job that not all jobs have, such as "negatives=99"."""
    overrides = {folder: _overrides(folder) for folder in jobs}
    common = set.intersection(*map(set, overrides.values())) if len(overrides) > 1 else set()
    return " ".join(override for override in overrides[job] if override not in common)


def _error(job: Path) -> str:
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
    """Return a sort key that puts job 10 after job 9."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in path.parts]
