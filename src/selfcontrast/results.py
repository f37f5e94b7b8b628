"""The result of a job, or of one evaluated model: the source of reports, terminal output and W&B."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isnan
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq

from selfcontrast.config import Parts
from selfcontrast.data.candidates import TARGET, Positive, read_chosen, read_negatives
from selfcontrast.data.example import Example
from selfcontrast.deprecated import current_result
from selfcontrast.evaluation.benchmarks.benchmark import JUDGMENTS, Options
from selfcontrast.evaluation.benchmarks.table import judgments_table
from selfcontrast.evaluation.compare import BASELINE, Comparison, by_prompt, row_of
from selfcontrast.evaluation.curve import Curve, bounds_in
from selfcontrast.evaluation.evaluate import ANSWERS, LM_EVAL, Evaluation
from selfcontrast.evaluation.published import compare_published
from selfcontrast.filters import filter as filter_stage
from selfcontrast.provenance import provenance
from selfcontrast.store import Artifact
from selfcontrast.tracking import Tracker
from selfcontrast.training.costs import peak_memory
from selfcontrast.training.sft import HISTORY

RESULT = "result.json"
MODEL = "model"  # name of the only system in evaluate.py
SAMPLES = 24  # prompts that reports show with answers


@dataclass(frozen=True)
class Result:
    """Everything that reports show about a job. All values are JSON, readable without this package.

    Attributes:
        name: name of the run.
        negatives: K.
        seed: seed of training.
        value: value of the config's `target_metric`.
        policy: folder of the aligned policy; of the fine-tuned model if there are no iterations.
        comparison: the main numbers (`evaluation.compare.Comparison`).
        stages: per stage: name, key, folder, seconds, whether it was cached or resumed, and its summary.
        histories: per trained stage, its records of metrics.
        similarities: similarity of distinct candidates to their target: counts per bin (bounds: "edges") of all
            candidates and of those selected as negatives, and quantiles over prompts of the selector's threshold. If
            candidates are scored, also the table of `filters.signals.signal_table` ("signals").
        lm_eval: metrics per system and task.
        samples: evaluation prompts with target and one answer of each system at the first decoding.
        negatives_shown: training prompts with target, chosen candidate, and nearest and farthest negative.
        config: the resolved config.
        provenance: versions, commit, machine.
        prompts: scores per prompt (`evaluation.compare.by_prompt`), for comparisons across seeds.
        benchmarks: per benchmark: `lines` (a measure of a system, with interval), `facts` per system, and some
            judgments (`shown`).
        published: published figures next to this run's figures (`evaluation.published.PublishedComparison`).
        against_kl: score, entropy and KL from the fine-tuned model, for that model, the checkpoints and the policy;
            None if no decoding samples from the policy itself.
    """

    name: str
    negatives: int
    seed: int
    value: float | None
    policy: str
    comparison: Comparison
    stages: list[dict[str, Any]]
    histories: dict[str, list[dict[str, float]]]
    similarities: dict[str, Any]
    lm_eval: dict[str, dict[str, dict[str, float]]]
    samples: list[dict[str, Any]]
    negatives_shown: list[dict[str, Any]]
    config: dict[str, Any]
    provenance: dict[str, Any]
    benchmarks: dict[str, dict[str, Any]] = field(default_factory=dict)  # early results lack it
    published: list[dict[str, Any]] = field(default_factory=list)  # early results lack it
    prompts: dict[str, Any] = field(default_factory=dict)  # early results lack it
    against_kl: Curve | None = None  # early results lack it

    @classmethod
    def collect(
        cls,
        parts: Parts,
        config: Mapping[str, Any],
        artifacts: Mapping[str, Artifact],
        systems: Mapping[str, Artifact],
        comparison: Comparison,
        measured: Mapping[str, Mapping[str, Artifact]],
        against_kl: Curve | None,
    ) -> "Result":
        train = {example.id: example for example in parts.splits["train"]}
        lm_eval = {n: json.loads((a.path / LM_EVAL).read_text()) for n, a in systems.items()}
        benchmarks = {
            name: measured_lines(parts.evaluation, name, by_system, artifacts["contamination"])
            for name, by_system in measured.items()
            if by_system
        }
        return cls(
            name=parts.name,
            negatives=parts.negatives,
            seed=parts.seed,
            value=_value(parts.target_metric, comparison, parts),
            policy=str(artifacts["align" if parts.iterations else "sft"].path / "model"),
            comparison=comparison,
            stages=[stage_record(name, artifact) for name, artifact in artifacts.items()],
            histories={name: history for name, a in artifacts.items() if (history := _history(a))},
            similarities=_similarities(artifacts),
            lm_eval=lm_eval,
            samples=samples_of(parts.evaluation.choose(parts.splits), systems, parts.evaluation.headline_decoding),
            negatives_shown=_negatives_shown(artifacts["filter"], train) if parts.iterations else [],
            config=dict(config),
            provenance={**provenance(), "peak_memory_gib": peak_memory()},
            prompts=by_prompt({name: artifact.path for name, artifact in systems.items()}, parts.evaluation),
            benchmarks=benchmarks,
            published=compare_published(
                parts.published, parts.negatives, benchmarks, lm_eval, parts.evaluation.confidence
            ),
            against_kl=against_kl,
        )

    @classmethod
    def read(cls, folder: Path) -> "Result":
        return cls(**current_result(json.loads((folder / RESULT).read_text())))

    def track(self, tracker: Tracker, folder: Path) -> None:
        """Log the main numbers, tables and files of the run."""
        summary: dict[str, Any] = {"value": self.value, "policy": self.policy}
        for row in self.comparison["rows"]:
            prefix = f"evaluate/{row['system']}/{row['decoding']}"
            for measure in ("mean", "difference", "win_rate"):
                if measure in row:
                    for bound in ("estimate", "low", "high"):
                        summary[f"{prefix}/{measure}/{bound}"] = row[measure][bound]
            summary[f"{prefix}/nll"] = row["nll"]
        for point in self.against_kl["points"] if self.against_kl else []:
            for measure, value in bounds_in(point).items():
                for bound in ("estimate", "low", "high"):
                    summary[f"divergence/{point['system']}/{measure}/{bound}"] = dict(value)[bound]
        for system, tasks in self.lm_eval.items():
            summary |= {f"lm_eval/{system}/{t}/{m}": v for t, metrics in tasks.items() for m, v in metrics.items()}
        for name, benchmark in self.benchmarks.items():
            for line in benchmark["lines"]:
                for bound in ("estimate", "low", "high"):
                    summary[f"{name}/{line['system']}/{line['what']}/{bound}"] = line["value"][bound]
        for stage in self.stages:
            summary[f"seconds/{stage['name']}"] = stage["seconds"]
            summary |= {f"{stage['name']}/{k}": v for k, v in stage["summary"].items() if v is not None}
        tracker.summary(summary)
        tracker.table("samples", samples_table(self.samples))
        if self.against_kl:
            tracker.table("against_kl", curve_table(self.against_kl))
        tracker.table("negatives", pd.DataFrame(self.negatives_shown))
        tracker.figure("figure", folder / "figure.png")
        tracker.files(folder / RESULT, folder / "report.html")


@dataclass(frozen=True)
class Evaluated:
    """The evaluation of one model, as JSON.

    Attributes:
        model: the model's folder.
        comparison: as in `Result`, with this system only.
        lm_eval: metrics per task.
        benchmarks: as in `Result`, without those that compare with the SFT model.
        samples, stages, config, provenance: as in `Result`.
    """

    model: str
    comparison: Comparison
    lm_eval: dict[str, dict[str, float]]
    benchmarks: dict[str, dict[str, Any]]
    samples: list[dict[str, Any]]
    stages: list[dict[str, Any]]
    config: dict[str, Any]
    provenance: dict[str, Any]

    @property
    def systems(self) -> list[str]:
        return [MODEL]

    @classmethod
    def read(cls, folder: Path) -> "Evaluated":
        return cls(**current_result(json.loads((folder / RESULT).read_text())))

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Return whether the folder holds the result of one model, not of a run."""
        return "policy" not in json.loads((folder / RESULT).read_text())


def stage_facts(artifact: Artifact) -> str:
    """Return one line for the terminal: cached or computed, seconds, and folder."""
    status = "cached" if artifact.cached else ("resumed, done" if artifact.manifest["resumed"] else "done")
    return f"{status} ({artifact.seconds:.0f} s)  {artifact.path}"


def replay(artifact: Artifact, tracker: Tracker, label: str) -> None:
    """Log the training curves of a cached stage, so that the tracker has every job's curves."""
    for record in _history(artifact):
        tracker.log(label, record)


def measured_lines(
    evaluation: Evaluation, name: str, by_system: Mapping[str, Artifact], contamination: Artifact
) -> dict[str, Any]:
    """Return a benchmark's numbers, facts, and some judgments with question, answers, verdict and reason."""
    options = Options(evaluation.confidence, evaluation.n_bootstrap, evaluation.seed)
    lines = evaluation.benchmarks[name].lines({system: a.path for system, a in by_system.items()}, options)
    judgment_rows = []
    overlaps = contamination.summary
    for system, artifact in by_system.items():
        if (artifact.path / JUDGMENTS).exists():
            judgments = pd.read_parquet(artifact.path / JUDGMENTS)
            sample = judgments.iloc[:: max(1, len(judgments) // SAMPLES)][:SAMPLES]
            judgment_rows += [{"system": system, **row} for row in json.loads(sample.to_json(orient="records"))]
    return {
        "lines": [asdict(line) for line in lines],
        "facts": {system: artifact.summary for system, artifact in by_system.items()},
        "shown": judgment_rows,
        "contamination": {key: n for key in ("prompts", "flagged") if (n := overlaps.get(f"{name}/{key}")) is not None},
    }


def track_judgments(tracker: Tracker, evaluation: Evaluation, measured: Mapping[str, Mapping[str, Artifact]]) -> None:
    """Log a table with some judgments of each benchmark. The artifacts hold all judgments."""
    for name, by_system in measured.items():
        table = judgments_table({system: a.path for system, a in by_system.items()}, evaluation.judgments_shown)
        if len(table):
            tracker.table(f"judgments/{name}", table)


def _history(artifact: Artifact) -> list[dict[str, float]]:
    file = artifact.path / HISTORY
    return list(json.loads(file.read_text())) if file.exists() else []


def stage_record(name: str, artifact: Artifact) -> dict[str, Any]:
    return {
        "name": name,
        "key": artifact.key,
        "path": str(artifact.path),
        "seconds": artifact.seconds,
        "cached": artifact.cached,
        "resumed": artifact.manifest["resumed"],
        "summary": artifact.summary,
    }


def _value(metric: str, comparison: Comparison, parts: Parts) -> float | None:
    """Return the target metric of the policy or, without iterations, of the fine-tuned model; None if it has none."""
    row = row_of(comparison, parts.label if parts.iterations else BASELINE, parts.evaluation.headline_decoding)
    values = {"score": row["mean"], "difference": row.get("difference"), "win_rate": row.get("win_rate")}
    value = values[metric]
    return float(value["estimate"]) if value else None


def _similarities(artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    """Return the filter's diagnostics; empty without a filter stage."""
    if "filter" not in artifacts:
        return {}
    return dict(json.loads((artifacts["filter"].path / filter_stage.DIAGNOSTICS).read_text()))


def samples_of(examples: list[Example], systems: Mapping[str, Artifact], decoding: str) -> list[dict[str, Any]]:
    """Return evenly spaced prompts with their target and each system's first answer."""
    step = max(1, len(examples) // SAMPLES)
    sample = examples[::step][:SAMPLES]
    answers = {name: pd.read_parquet(artifact.path / ANSWERS) for name, artifact in systems.items()}
    return [
        {
            "category": example.category,
            "prompt": [dict(message) for message in example.prompt],
            "target": example.target,
            "turns": example.turns,
            "answers": {name: _answers(frame, example.id, decoding) for name, frame in answers.items()},
        }
        for example in sample
    ]


def _answers(frame: pd.DataFrame, example_id: str, decoding: str) -> list[dict[str, Any]]:
    """Return the first sample's answer to each turn, with its score or similarity."""
    chosen = frame[(frame["id"] == example_id) & (frame["decoding"] == decoding) & (frame["sample"] == 0)]
    measure = "score" if "score" in frame else "similarity"
    return [
        {"text": row.text, measure: float(getattr(row, measure))}
        for row in chosen.sort_values("turn").itertuples(index=False)
    ]


def _negatives_shown(artifact: Artifact, train: Mapping[str, Example]) -> list[dict[str, Any]]:
    file = artifact.path / filter_stage.FILE
    ids = pc.unique(pq.read_table(file, columns=["id"])["id"]).to_pylist()
    shown_ids = ids[:: max(1, len(ids) // SAMPLES)][:SAMPLES]
    ranked, positives = read_negatives(file, shown_ids), read_chosen(artifact.path) or {}
    rows = []
    for name in shown_ids:
        ordered = sorted(ranked[name], key=lambda negative: negative.similarity)
        rows.append(
            {
                "category": train[name].category,
                "prompt": train[name].prompt[-1]["content"],
                "target": train[name].target,
                **({"chosen": _candidate_of(positives.get(name, []))} if positives else {}),
                "farthest": ordered[0].text,
                "farthest_similarity": _or_none(ordered[0].similarity),
                "nearest": ordered[-1].text,
                "nearest_similarity": _or_none(ordered[-1].similarity),
            }
        )
    return rows


def _or_none(similarity: float) -> float | None:
    """Return the similarity, or None if it is NaN (a prompt without target), since JSON has no NaN."""
    return None if isnan(similarity) else similarity


def _candidate_of(chosen: Sequence[Positive]) -> str:
    """Return the candidate among a prompt's chosen responses; "" if only the target is chosen."""
    return next((positive.text for positive in chosen if positive.sample != TARGET), "")


def curve_table(curve: Curve) -> pd.DataFrame:
    """Return a table of score, KL and entropy with intervals, one row per system."""
    rows: list[dict[str, Any]] = []
    for point in curve["points"]:
        row: dict[str, Any] = {"system": point["system"], "step": point["step"], "decoding": curve["decoding"]}
        for name, value in bounds_in(point).items():
            row |= {name: value["estimate"], f"{name}_low": value["low"], f"{name}_high": value["high"]}
        rows.append(row)
    return pd.DataFrame(rows)


def samples_table(samples: list[dict[str, Any]]) -> pd.DataFrame:
    """Return a table of samples: one row per prompt, one column per system."""
    return pd.DataFrame(
        [
            {
                "category": sample["category"],
                "prompt": "\n".join(message["content"] for message in sample["prompt"]),
                "target": sample["target"],
                **{name: "\n".join(a["text"] for a in answers) for name, answers in sample["answers"].items()},
            }
            for sample in samples
        ]
    )
