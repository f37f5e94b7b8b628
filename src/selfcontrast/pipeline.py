"""The whole method on one page: sft → generate → filter → align → evaluate → report.

Each stage is a function from its settings and the artifacts before it to one artifact, which the store computes once.
Only this module knows their order.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd

from selfcontrast.config import Parts
from selfcontrast.data import published
from selfcontrast.data.candidates import Negative, read_negatives, texts_by_prompt
from selfcontrast.data.example import Example
from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError
from selfcontrast.evaluation import contamination, scores
from selfcontrast.evaluation.benchmarks import asking, benchmark
from selfcontrast.evaluation.benchmarks.benchmark import Benchmark, Subject
from selfcontrast.evaluation.compare import BASELINE, compare
from selfcontrast.filters import diagnostics, embed, negatives, score
from selfcontrast.filters.shown import shown_candidates
from selfcontrast.generators import stage as generation
from selfcontrast.generators.backend import Responder
from selfcontrast.job import DATA, Job
from selfcontrast.models.loading import load_tokenizer
from selfcontrast.models.packing import Group
from selfcontrast.report.page import write_report
from selfcontrast.results import RESULT, Result, track_judgments
from selfcontrast.store import Artifact, Stage, settings_of
from selfcontrast.store.artifact import key_of
from selfcontrast.tracking import Tracker, Untracked
from selfcontrast.training import align, fine_tune, reference
from selfcontrast.training.align import preference_groups
from selfcontrast.training.nodes import this_node
from selfcontrast.training.steps import length
from selfcontrast.training.training import Training

log = logging.getLogger(__name__)

SHOWN_PROMPTS = 8  # whose candidates are tracked, all of them


def run(parts: Parts, config: Mapping[str, Any]) -> Result | None:
    """Runs or recalls all stages and writes the report; returns what it says, on the first node of the job."""
    if this_node(parts.hardware.num_nodes).rank > 0:
        _ = list(policies(Job(parts, Untracked())))
        return None
    tracked: AbstractContextManager[Tracker] = parts.tracking.run(parts.name, config, parts.output)
    with tracked as tracker:
        job = Job(parts, tracker, judged=True)
        systems, measured = everything(job)
        seen = pd.read_parquet(job.artifacts["contamination"].path / contamination.FILE)
        comparison = compare({name: a.path for name, a in systems.items()}, parts.evaluation, seen)
        result = Result.collect(parts, config, job.artifacts, systems, comparison, measured)
        (parts.output / RESULT).write_text(json.dumps(asdict(result)))
        write_report(result, parts.output)
        result.track(tracker, parts.output)
        track_judgments(tracker, parts.evaluation, measured)
        if parts.rounds:
            tracker.table("candidates", some_candidates(job))
    job.decisions.finish()
    return result


def everything(job: Job) -> tuple[dict[str, Artifact], dict[str, dict[str, Artifact]]]:
    """All stages in their order: by system its scores, and by benchmark each system's results."""
    _ = published_data(job), contaminated(job)
    trained, systems = {}, {}
    for name, policy in policies(job):
        # Before anything is sampled from it: a poor fine-tuned model is seen early.
        trained[name], systems[name] = policy, scores_of(job, policy, name)
    return systems, {name: measured_by(job, name, trained, systems) for name in job.parts.evaluation.benchmarks}


def published_data(job: Job) -> Artifact:
    """All examples: the lineage of whatever is made from them begins here."""
    p = job.parts
    stage = Stage(
        DATA, published.VERSION, p.rows, {}, lambda folder: published.publish(folder, p.splits), published.__name__
    )
    return job.get(stage)


def policies(job: Job) -> Iterator[tuple[str, Artifact]]:
    """With its name the fine-tuned model, then the policy of every round, each of which starts from the one before."""
    start, last, method = sft(job), job.parts.rounds, job.parts.method
    yield BASELINE, start
    for number in range(1, last + 1):
        start = Round(job, start, "" if number == last else f"round-{number}/").policy
        yield method if number == last else f"{method} round {number}", start


def sft(job: Job) -> Artifact:
    p = job.parts
    settings: dict[str, Any] = {"data": p.data, "model": p.model}
    if p.sft.epochs:  # else the model is what it was, whatever would have trained it
        settings |= {"adapter": p.adapter.at("sft"), "recipe": p.sft, "hardware": p.hardware, "seed": p.seed}

    def compute(folder: Path) -> Mapping[str, Any]:
        training = Training(p.adapter.at("sft"), p.sft, p.hardware, p.seed, job.report("sft"))
        return fine_tune.fine_tune(folder, p.model, p.splits, training)

    return job.get(Stage("sft", fine_tune.VERSION, settings, {}, compute, fine_tune.__name__), trained=True)


class Round:
    """The stages from a model to the policy that is aligned from it. Each asks for those it is made from.

    Args:
        start: the fine-tuned model, or the policy of the round before.
        prefix: of the stages' labels, where this is not the last round.
    """

    def __init__(self, job: Job, start: Artifact, prefix: str) -> None:
        self.job = job
        self.parts = job.parts
        self.start = start
        self.prefix = prefix
        self._read: dict[str, Example] = {}

    @cached_property
    def candidates(self) -> Artifact:
        p = self.parts
        before = settings_of(p.generator)

        def compute(folder: Path) -> Mapping[str, Any]:
            model = self.start.path / "model"
            summary = p.generator.generate(folder, model, p.splits["train"], p.engine, p.hardware.device)
            _same("generator", before, settings_of(p.generator))
            return summary

        settings = {"generator": p.generator}
        return self._get(
            Stage("generate", generation.VERSION, settings, {"model": self.start}, compute, generation.__name__)
        )

    @cached_property
    def embeddings(self) -> Artifact:
        p = self.parts

        def compute(folder: Path) -> Mapping[str, Any]:
            texts = texts_by_prompt(self.candidates.path / generation.FILE)
            prompts = ((self.example(name).target, found) for name, found in texts)
            return embed.embed(folder, p.encoder, p.engine, prompts, p.hardware.device)

        inputs = {"candidates": self.candidates}
        return self._get(Stage("embed", embed.VERSION, {"encoder": p.encoder}, inputs, compute, embed.__name__))

    @cached_property
    def rewards(self) -> Artifact:
        p = self.parts
        model = p.filter.reward_model
        assert model is not None, "asked for where there is one alone"

        def compute(folder: Path) -> Mapping[str, Any]:
            texts = texts_by_prompt(self.candidates.path / generation.FILE)
            prompts = ((self.example(name), found) for name, found in texts)
            return score.score(folder, model, p.engine, prompts, p.hardware.device)

        inputs = {"candidates": self.candidates}
        return self._get(Stage("score", score.VERSION, {"reward_model": model}, inputs, compute, score.__name__))

    @cached_property
    def negatives(self) -> Artifact:
        p = self.parts
        verifier = p.grader
        inputs = {"candidates": self.candidates, "embeddings": self.embeddings}
        judge: score.Scorer | None = score.Verified(verifier) if verifier else None
        if p.filter.reward_model is not None:
            inputs["rewards"] = self.rewards
            judge = score.Rewarded(self.rewards.path)

        def compute(folder: Path) -> Mapping[str, Any]:
            candidates = self.candidates.path / generation.FILE
            examples = {name: self.example(name) for name, _ in texts_by_prompt(candidates)}
            return negatives.select_negatives(folder, p.filter, examples, candidates, self.embeddings.path, judge)

        settings = {"filter": p.filter, "verifier": p.verifier}
        artifact = self._get(Stage("filter", negatives.VERSION, settings, inputs, compute, negatives.__name__))
        if artifact.summary:
            for line in diagnostics.lines(artifact.summary):
                log.info("%-24s %s", "", line)
        return artifact

    @cached_property
    def reference(self) -> Artifact:
        """Scores of every negative of the pool, whatever K: one computation for a whole sweep."""
        p = self.parts

        def compute(folder: Path) -> Mapping[str, Any]:
            ranked = read_negatives(self.negatives.path / negatives.FILE)
            groups, _ = self._groups(ranked, p.filter.max_negatives)
            scoring = reference.Scoring(self.start.path / "model", p.model.precision, p.hardware)
            reference.score_reference(folder, p.engine, scoring, groups, p.hardware.device)
            return {"tokens": sum(map(length, groups))}

        settings = {"cutoff": p.trainer.cutoff, "precision": p.hardware.precision}
        inputs = {"model": self.start, "negatives": self.negatives}
        return self._get(Stage("reference", reference.VERSION, settings, inputs, compute, reference.__name__))

    @cached_property
    def policy(self) -> Artifact:
        p = self.parts

        def compute(folder: Path) -> Mapping[str, Any]:
            ranked = read_negatives(self.negatives.path / negatives.FILE)
            drawn, without_room = self._groups(ranked, self._used)
            if without_room:
                log.warning("align: %d prompts are longer than trainer.cutoff: left out", without_room)
            groups, scored = align.nearest_first(drawn, ranked, reference.read_reference(self.reference.path))
            report = self.job.report(self.prefix + "align")
            training = Training(p.adapter.at("align"), p.trainer, p.hardware, p.seed, report)
            start = self.start.path / "model"
            return align.align(folder, start, p.model.precision, groups, scored, p.objective, training)

        settings = {
            "negatives": self._used,
            "objective": p.objective,
            "adapter": p.adapter.at("align"),
            "recipe": p.trainer,
            "hardware": p.hardware,
            **({"rescore_reference": True} if p.hardware.rescore_reference else {}),
            "seed": p.seed,
        }
        inputs = {"model": self.start, "negatives": self.negatives, "reference": self.reference}
        return self._get(Stage("align", align.VERSION, settings, inputs, compute, align.__name__), trained=True)

    @property
    def _used(self) -> int:
        """Negatives per prompt that training looks at: not K, where it continues supervised fine-tuning."""
        return self.parts.negatives if self.parts.objective.uses_negatives else 0

    def example(self, name: str) -> Example:
        """A training example, with its answers as candidates have theirs: the text of their tokens."""
        if name not in self._read:
            self._read[name] = self._renderer.as_read(self.job.train[name])
        return self._read[name]

    @cached_property
    def _renderer(self) -> Renderer:
        return Renderer(load_tokenizer(self.start.path / "model"))

    def _groups(self, ranked: Mapping[str, Sequence[Negative]], count: int) -> tuple[list[Group], int]:
        return preference_groups(self._renderer, self.parts.splits["train"], ranked, count, self.parts.trainer.cutoff)

    def _get(self, stage: Stage, trained: bool = False) -> Artifact:
        return self.job.get(stage, self.prefix + stage.name, trained)


def some_candidates(job: Job) -> pd.DataFrame:
    """Of the last round."""
    found = {name: job.artifacts[name].path for name in ("generate", "embed", "filter")}
    return shown_candidates(
        found["generate"] / generation.FILE, found["embed"], found["filter"], job.train, SHOWN_PROMPTS
    )


def scores_of(job: Job, policy: Artifact, name: str) -> Artifact:
    p = job.parts
    verifier = p.grader
    settings = {
        "evaluation": p.evaluation,
        "precision": p.model.precision,
        "data": p.data,
        "verifier": p.verifier,
        "encoder": None if verifier else p.encoder,
    }

    def compute(folder: Path) -> Mapping[str, Any]:
        measured = scores.Policy(name, policy.path / "model", p.model.precision, p.hardware.device)
        responder = Responder(p.evaluation.backend, p.engine, p.hardware.device)
        examples = p.evaluation.choose(p.splits)
        return scores.evaluate(folder, p.evaluation, measured, examples, verifier, p.encoder, responder)

    stage = Stage("evaluate", scores.VERSION, settings, {"policy": policy}, compute, scores.__name__)
    return job.get(stage, f"evaluate {name}")


def measured_by(
    job: Job, name: str, trained: Mapping[str, Artifact], systems: Mapping[str, Artifact]
) -> dict[str, Artifact]:
    """Per system the results of the benchmark that the evaluation calls so; none where it does not apply.

    Args:
        trained: the systems' models; without the baseline's, what compares with it is left out.
        systems: their scores.
    """
    p = job.parts
    measure: Benchmark = p.evaluation.benchmarks[name]
    examples = p.evaluation.choose(p.splits)
    if reason := measure.left_out(examples, p.grader):
        log.info("%-24s left out: %s", name, reason)
        return {}
    if measure.relative and (BASELINE not in systems or len(systems) == 1):
        return {}
    settings = {"benchmark": measure, **({} if measure.own_prompts() else {"data": p.data, "verifier": p.verifier})}
    asked, decoding = measure.asking(examples), p.evaluation.ways[0].name
    if asked:
        systems = {label: answers_to(job, asked, name, trained[label], label) for label in systems}
        decoding = asking.OWN
    found = {}
    for label, answered in systems.items():
        base = None if label == BASELINE else systems.get(BASELINE)
        if measure.relative and base is None:
            continue
        surroundings = job.surroundings(f"{name} {label}")
        subject = Subject(label, answered.path, base.path if base else None, examples, decoding, surroundings)
        inputs = {"answers": answered, **({"baseline": base} if measure.relative and base else {})}
        where, model = f"evaluation.benchmarks.{name}", trained[label].path / "model"
        compute = partial(_measured, measure, where, settings_of(measure), subject, model)
        stage = Stage("benchmark", benchmark.VERSION, settings, inputs, compute, benchmark.__name__)
        found[label] = job.get(stage, f"{name} {label}")
        if found[label].cached:
            job.budget.count(found[label].key, found[label].summary.get("cost") or 0.0)
    return found


def _measured(
    measure: Benchmark, name: str, before: Mapping[str, Any], subject: Subject, model: Path, folder: Path
) -> Mapping[str, Any]:
    """Run a benchmark on examples whose answers are the text of their tokens, as a policy's own answers are."""
    renderer = Renderer(load_tokenizer(model))
    read = [renderer.as_read(example) for example in subject.examples]
    summary = measure.run(folder, subject=replace(subject, examples=read))
    _same(name, before, settings_of(measure))
    return summary


def _same(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Raise `UserError` if a file that these settings name has been changed while the stage read it."""
    if before != after:
        raise UserError(
            f"{name}: one of its files has changed while this job was reading it; run the same command again"
        )


def answers_to(job: Job, asked: asking.Asking, name: str, policy: Artifact, label: str) -> Artifact:
    """A policy's answers to a benchmark's own questions: the same for every judge."""
    p = job.parts
    settings = {"asked": asked, "backend": p.evaluation.backend}

    def compute(folder: Path) -> Mapping[str, Any]:
        responder = Responder(p.evaluation.backend, p.engine, p.hardware.device)
        return asked.answer(folder, policy.path / "model", responder, f"{name} answers {label}")

    stage = Stage("answers", asking.VERSION, settings, {"policy": policy}, compute, asking.__name__)
    return job.get(stage, f"{name} answers {label}")


def contaminated(job: Job) -> Artifact:
    """Which evaluated prompts, benchmarks' own among them, resemble a training prompt: the same for every policy."""
    p = job.parts
    rule = p.evaluation.contamination
    asked = {name: own for name, each in p.evaluation.benchmarks.items() if (own := each.own_prompts())}
    settings = {
        "rule": rule,
        **({"benchmarks": key_of(asked)} if asked else {}),
        "split": p.evaluation.split,
        "prompts": p.evaluation.prompts,
        **p.rows,
        "encoder": None if rule.similarity is None else p.encoder,
    }

    def compute(folder: Path) -> Mapping[str, Any]:
        prompts = {e.id: contamination.user_text(e) for e in p.evaluation.choose(p.splits)}
        training = [contamination.user_text(e) for e in p.splits["train"]]
        benchmarks = {p.evaluation.split: prompts, **asked}
        return contamination.check_benchmarks(folder, rule, benchmarks, training, p.encoder, p.hardware.device)

    return job.get(Stage("contamination", contamination.VERSION, settings, {}, compute, contamination.__name__))
