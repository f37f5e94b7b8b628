"""The result of a job, or of a model measured alone: what reports, the terminal and W&B are all made from."""

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
from selfcontrast.evaluation.benchmarks.benchmark import JUDGMENTS, Options
from selfcontrast.evaluation.benchmarks.table import judgments_table
from selfcontrast.evaluation.compare import BASELINE, Comparison, by_prompt, row_of
from selfcontrast.evaluation.curve import Curve, bounds_in
from selfcontrast.evaluation.evaluate import ANSWERS, LM_EVAL, Evaluation
from selfcontrast.evaluation.published import beside
from selfcontrast.filters import filter as filter_stage
from selfcontrast.provenance import provenance
from selfcontrast.store import Artifact
from selfcontrast.tracking import Tracker
from selfcontrast.training.costs import peak_memory
from selfcontrast.training.sft import HISTORY

RESULT = "result.json"
MODEL = "model"  # what evaluate.py calls the one system that it measures
SAMPLES = 24  # prompts shown with their answers


@dataclass(frozen=True)
class Result:
    """Everything a reader is shown of a job. JSON throughout, so that it can be read back without this package.

    Attributes:
        name: of the run.
        negatives: K.
        seed: of training.
        value: of the config's `target_metric`.
        policy: folder of the aligned policy; of the fine-tuned model, where there are no rounds.
        comparison: the numbers, as `evaluation.compare.Comparison` has them.
        stages: per stage its name, key, folder, seconds, whether it was recalled or resumed, and its summary.
        histories: per trained stage its records of metrics.
        similarities: of distinct candidates to their target: counts in bins ("edges") of all of them and of those drawn
            as negatives, and quantiles over prompts of where the selector cuts; and, where something scores them, the
            table of `filters.signals.signal_table` ("signals").
        lm_eval: per system and task the metrics.
        samples: test prompts with target and one answer of each system at the first decoding.
        negatives_shown: training prompts with their target, the candidate chosen, and their nearest and farthest
            negative.
        config: resolved.
        provenance: versions, commit, machine.
        prompts: scores by prompt, as `evaluation.compare.by_prompt` has them: what seeds are compared by.
        benchmarks: by name their `lines` (of each system what was measured, and its interval), `facts` by system, and
            some of the judgments (`shown`).
        published: figures of others for this run's systems, beside what was measured (`evaluation.published.Beside`).
        against_kl: score, KL from the fine-tuned model and entropy of it, of checkpoints, and of the policy; None where
            no decoding gives samples of the policy itself.
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
    benchmarks: dict[str, dict[str, Any]] = field(default_factory=dict)  # results from before there were any have none
    published: list[dict[str, Any]] = field(default_factory=list)  # the same
    prompts: dict[str, Any] = field(default_factory=dict)  # likewise
    against_kl: Curve | None = None  # likewise

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
            name: measured_lines(parts.evaluation, name, found, artifacts["contamination"])
            for name, found in measured.items()
            if found
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
            samples=samples_of(parts.evaluation.choose(parts.splits), systems, parts.evaluation.ways[0].name),
            negatives_shown=_negatives_shown(artifacts["filter"], train) if parts.iterations else [],
            config=dict(config),
            provenance={**provenance(), "peak_memory_gib": peak_memory()},
            prompts=by_prompt({name: artifact.path for name, artifact in systems.items()}, parts.evaluation),
            benchmarks=benchmarks,
            published=beside(parts.published, parts.negatives, benchmarks, lm_eval, parts.evaluation.confidence),
            against_kl=against_kl,
        )

    @classmethod
    def read(cls, folder: Path) -> "Result":
        return cls(**json.loads((folder / RESULT).read_text()))

    def track(self, tracker: Tracker, folder: Path) -> None:
        """The headline numbers, tables and files of the run."""
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
            summary |= {f"lm_eval/{system}/{t}/{m}": v for t, found in tasks.items() for m, v in found.items()}
        for name, found in self.benchmarks.items():
            for line in found["lines"]:
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
    """What was measured of a model, as JSON.

    Attributes:
        model: its folder.
        comparison: as of `Result`, with this system alone.
        lm_eval: per task its metrics.
        benchmarks: by name, as of `Result`; without those that compare with the SFT model.
        samples, stages, config, provenance: as of `Result`.
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
        return cls(**json.loads((folder / RESULT).read_text()))

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Whether the folder's result is of one model, and not of a run."""
        return "policy" not in json.loads((folder / RESULT).read_text())


def stage_facts(artifact: Artifact) -> str:
    """One line for the terminal: how the artifact was had, what it took, and where it lies."""
    how = "recalled" if artifact.cached else ("resumed, done" if artifact.manifest["resumed"] else "done")
    return f"{how} ({artifact.seconds:.0f} s)  {artifact.path}"


def replay(artifact: Artifact, tracker: Tracker, label: str) -> None:
    """Training curves of a stage that was recalled, so that every job's run is whole."""
    for record in _history(artifact):
        tracker.log(label, record)


def measured_lines(
    evaluation: Evaluation, name: str, found: Mapping[str, Artifact], contamination: Artifact
) -> dict[str, Any]:
    """A benchmark's numbers, its facts, and some of its judgments with question, answers, verdict and reason."""
    options = Options(evaluation.confidence, evaluation.n_bootstrap, evaluation.seed)
    lines = evaluation.benchmarks[name].lines({system: a.path for system, a in found.items()}, options)
    shown = []
    seen = contamination.summary
    for system, artifact in found.items():
        if (artifact.path / JUDGMENTS).exists():
            judgments = pd.read_parquet(artifact.path / JUDGMENTS)
            some = judgments.iloc[:: max(1, len(judgments) // SAMPLES)][:SAMPLES]
            shown += [{"system": system, **row} for row in json.loads(some.to_json(orient="records"))]
    return {
        "lines": [asdict(line) for line in lines],
        "facts": {system: artifact.summary for system, artifact in found.items()},
        "shown": shown,
        "contamination": {what: n for what in ("prompts", "flagged") if (n := seen.get(f"{name}/{what}")) is not None},
    }


def track_judgments(tracker: Tracker, evaluation: Evaluation, measured: Mapping[str, Mapping[str, Artifact]]) -> None:
    """A table of each benchmark's judgments. All of them are in its artifacts besides."""
    for name, found in measured.items():
        table = judgments_table({system: a.path for system, a in found.items()}, evaluation.judgments_shown)
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
    """Of the policy; without one the score is the fine-tuned model's, and nothing is compared."""
    row = row_of(comparison, parts.label if parts.iterations else BASELINE, parts.evaluation.ways[0].name)
    values = {"score": row["mean"], "difference": row.get("difference"), "win_rate": row.get("win_rate")}
    found = values[metric]
    return float(found["estimate"]) if found else None


def _similarities(artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    """Empty where nothing was filtered."""
    if "filter" not in artifacts:
        return {}
    return dict(json.loads((artifacts["filter"].path / filter_stage.DIAGNOSTICS).read_text()))


def samples_of(examples: list[Example], systems: Mapping[str, Artifact], decoding: str) -> list[dict[str, Any]]:
    """Prompts, evenly spread, with their target and each system's first answer."""
    step = max(1, len(examples) // SAMPLES)
    shown = examples[::step][:SAMPLES]
    answers = {name: pd.read_parquet(artifact.path / ANSWERS) for name, artifact in systems.items()}
    return [
        {
            "category": example.category,
            "prompt": [dict(message) for message in example.prompt],
            "target": example.target,
            "turns": example.turns,
            "answers": {name: _answers(frame, example.id, decoding) for name, frame in answers.items()},
        }
        for example in shown
    ]


def _answers(frame: pd.DataFrame, name: str, decoding: str) -> list[dict[str, Any]]:
    """The first sample's answer to each turn, with its score or similarity."""
    chosen = frame[(frame["id"] == name) & (frame["decoding"] == decoding) & (frame["sample"] == 0)]
    measure = "score" if "score" in frame else "similarity"
    return [
        {"text": row.text, measure: float(getattr(row, measure))}
        for row in chosen.sort_values("turn").itertuples(index=False)
    ]


def _negatives_shown(artifact: Artifact, train: Mapping[str, Example]) -> list[dict[str, Any]]:
    file = artifact.path / filter_stage.FILE
    names = pc.unique(pq.read_table(file, columns=["id"])["id"]).to_pylist()
    chosen = names[:: max(1, len(names) // SAMPLES)][:SAMPLES]
    ranked, positives = read_negatives(file, chosen), read_chosen(artifact.path) or {}
    rows = []
    for name in chosen:
        ordered = sorted(ranked[name], key=lambda negative: negative.similarity)
        rows.append(
            {
                "category": train[name].category,
                "prompt": train[name].prompt[-1]["content"],
                "target": train[name].target,
                **({"chosen": _candidate_of(positives.get(name, []))} if positives else {}),
                "farthest": ordered[0].text,
                "farthest_similarity": _known(ordered[0].similarity),
                "nearest": ordered[-1].text,
                "nearest_similarity": _known(ordered[-1].similarity),
            }
        )
    return rows


def _known(similarity: float) -> float | None:
    """Return it, or None for that of a prompt without target: JSON has no NaN."""
    return None if isnan(similarity) else similarity


def _candidate_of(chosen: Sequence[Positive]) -> str:
    """The text of the candidate among a prompt's chosen responses; empty where the target alone is chosen."""
    return next((one.text for one in chosen if one.sample != TARGET), "")


def curve_table(curve: Curve) -> pd.DataFrame:
    """Score, KL and entropy as a table: one row per system, with intervals."""
    rows: list[dict[str, Any]] = []
    for point in curve["points"]:
        row: dict[str, Any] = {"system": point["system"], "step": point["step"], "decoding": curve["decoding"]}
        for name, value in bounds_in(point).items():
            row |= {name: value["estimate"], f"{name}_low": value["low"], f"{name}_high": value["high"]}
        rows.append(row)
    return pd.DataFrame(rows)


def samples_table(samples: list[dict[str, Any]]) -> pd.DataFrame:
    """Samples as a table: one row per prompt, a column per system."""
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
