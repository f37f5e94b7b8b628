"""Run the experiment on a job's model: fine-tune it or read it from the store, then sample, embed and measure."""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from selfcontrast.config import Parts
from selfcontrast.data.candidates import Candidate, read_candidates
from selfcontrast.data.example import Example
from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError
from selfcontrast.filters.draw import choose
from selfcontrast.filters.filter import blocks
from selfcontrast.filters.pool import Indices
from selfcontrast.filters.score import CandidateScorer, VerifierScorer
from selfcontrast.filters.select import Filter
from selfcontrast.generators import generate as generation
from selfcontrast.generators.generate import Generation
from selfcontrast.job import Job
from selfcontrast.models.loading import load_model, load_tokenizer
from selfcontrast.models.packing import Group
from selfcontrast.models.shared_prompt import use_shared_prompt
from selfcontrast.objectives import Contrast
from selfcontrast.provenance import provenance
from selfcontrast.results import stage_record
from selfcontrast.stages.iteration import Iteration
from selfcontrast.stages.sft import sft
from selfcontrast.store import Artifact, Stage
from selfcontrast.tracking import Tracker
from studies.gradient_error.gradients import response_gradients
from studies.gradient_error.measure import FILE, VERSION, GradientError, ResponseGradients, measure


@dataclass(frozen=True)
class Theory:
    """The results, as JSON.

    Attributes:
        bandit, model: results of `measure.on_bandit` and `measure.on_model`.
        stages, config, provenance: as in `results.Result`.
    """

    bandit: dict[str, Any]
    model: dict[str, Any]
    stages: list[dict[str, Any]]
    config: dict[str, Any]
    provenance: dict[str, Any]


def run(parts: Parts, settings: GradientError, config: Mapping[str, Any]) -> Theory:
    """Run all stages that are not cached, and return the results.

    Raises:
        UserError: if the generator does not sample from the job's model, the loss has no negatives, or the chosen
            response is not the target.
    """
    if not isinstance(parts.generator, Generation):
        raise UserError("generator: the theory needs many samples per prompt. Use generator=hf or generator=vllm.")
    if not isinstance(parts.objective, Contrast):
        raise UserError("objective: the theory needs a preference loss. Use objective=self_contrast.")
    if parts.chosen.candidate:
        raise UserError("chosen: the theory needs the target as the positive. Use chosen=target.")
    beta = parts.objective.beta
    generator = replace(parts.generator, prompts=settings.prompts, samples=settings.samples)
    parts = replace(parts, generator=generator)
    tracked: AbstractContextManager[Tracker] = parts.tracking.run(f"theory s{parts.seed}", config, parts.output)
    with tracked as tracker:
        job = Job(parts, tracker)
        model = sft(job)
        sampled = Iteration(job, model, "theory/")
        artifact = _measure(job, settings, beta, model, sampled)
        results = json.loads((artifact.path / FILE).read_text())
        stages = [stage_record(name, stage) for name, stage in job.artifacts.items()]
        theory = Theory(results["bandit"], results["model"], stages, dict(config), provenance())
        tracker.summary({f"theory/{name}": value for name, value in artifact.summary.items()})
    job.decisions.finish()
    return theory


def _measure(job: Job, settings: GradientError, beta: float, model: Artifact, sampled: Iteration) -> Artifact:
    p = job.parts

    def compute(folder: Path) -> Mapping[str, Any]:
        return measure(folder, settings, _compute_gradients(job, settings, model, sampled), beta)

    key = {"gradient_error": settings, "beta": beta, "filter": p.filter}
    inputs = {"model": model, "candidates": sampled.candidates, "embeddings": sampled.embeddings}
    return job.get(Stage("theory", VERSION, key, inputs, compute, __name__))


def _compute_gradients(job: Job, settings: GradientError, model: Artifact, sampled: Iteration) -> ResponseGradients:
    """Compute the gradients of every response at the start of preference training, when policy and reference agree."""
    p = job.parts
    p.hardware.apply_threads()
    policy = load_model(model.path / "model", p.model.dtype).eval()
    use_shared_prompt(policy, p.hardware.attention)
    renderer, verifier = Renderer(load_tokenizer(model.path / "model")), p.grader
    candidates = read_candidates(sampled.candidates.path / generation.FILE)
    by_prompt = [(sampled.example(name), list(rows)) for name, rows in groupby(candidates, lambda c: c.id)]
    groups = [_group(renderer, example, rows) for example, rows in by_prompt]
    scores = None
    if verifier:
        texts = [(example, [example.target, *(c.text for c in rows)]) for example, rows in by_prompt]
        scores = np.array([[verifier.score(example, text) for text in row] for example, row in texts])
    files = sampled.candidates.path / generation.FILE, sampled.embeddings.path
    examples = {example.id: example for example, _ in by_prompt}
    kept, drawn = select_samples(p.filter, examples, *files, VerifierScorer(verifier) if verifier else None)
    with tqdm(total=len(groups), desc="theory", unit="prompt", disable=None) as bar:
        chunk = p.hardware.logits_chunk
        gradients, log_probs = response_gradients(policy, groups, settings.dimensions, settings.seed, chunk, bar.update)
    responses = [len(r) for group in groups for r in group.responses]
    tokens = (float(np.mean([len(group.prompt) for group in groups])), float(np.mean(responses)))
    return ResponseGradients(gradients, log_probs, log_probs, scores, kept, drawn, tokens)


def _group(renderer: Renderer, example: Example, candidates: list[Candidate]) -> Group:
    prompt, target = renderer.example(example)
    return Group(example.id, prompt, target, [c.token_ids for c in candidates])


def select_samples(
    settings: Filter,
    examples: Mapping[str, Example],
    candidates: Path,
    embeddings: Path,
    scorer: CandidateScorer | None,
) -> tuple[NDArray[np.bool_], list[Indices]]:
    """Return which samples the filter keeps, [N, M], and the indices [K] that it draws per prompt, in rank order."""
    kept, drawn = list[NDArray[np.bool_]](), list[Indices]()
    for _, block in blocks(candidates, embeddings, examples):
        for _, sampled in block:
            score = partial(scorer, examples[sampled.id], sampled.texts) if scorer else None
            choice = choose(settings, sampled, score)
            kept.append(np.isin(np.arange(len(sampled.texts)), choice.rows[choice.drawn.kept]))
            drawn.append(choice.negatives)
    return np.stack(kept), drawn
