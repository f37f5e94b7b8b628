"""The evaluate stage: grade one policy's answers, score the targets' likelihood, and run lm-eval's tasks.

This stage compares no policies. So a policy's scores are computed once and used in all later comparisons.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field

from selfcontrast.constrained import (
    Count,
    Fraction,
    NonNegative,
    ProperFraction,
    Samples,
    Seed,
    Temperature,
    Text,
    WholeNumber,
    check_numbers,
    convert,
)
from selfcontrast.data.candidates import Decoding
from selfcontrast.data.example import Example, Split, Verifier
from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError
from selfcontrast.evaluation.contamination import Contamination
from selfcontrast.evaluation.dialogue import DialogueSampler
from selfcontrast.evaluation.finite import check_finite
from selfcontrast.evaluation.lm_eval import LmEval
from selfcontrast.evaluation.lm_eval_run import run_tasks
from selfcontrast.filters.encode import Encoder
from selfcontrast.generators.backend import Backend, Responder
from selfcontrast.models.loading import load_tokenizer
from selfcontrast.models.truncation import report_unread, unread
from selfcontrast.store import NOT_IN_KEY, RESUME

if TYPE_CHECKING:
    from selfcontrast.evaluation.benchmarks.benchmark import Benchmark
else:
    # An import of `Benchmark` would also import judges and statistics. They do not affect this stage, but the store
    # would record them as this stage's code.
    # `selfcontrast.config` checks that each benchmark has the methods of a `Benchmark`.
    Benchmark = Any

VERSION = 6
ANSWERS, LIKELIHOOD, LM_EVAL = "answers.parquet", "likelihood.parquet", "lm_eval.json"


@dataclass(frozen=True)
class NamedDecoding:
    """A named decoding to evaluate."""

    name: Text
    temperature: Temperature
    samples: Samples


@dataclass(frozen=True)
class Evaluation:
    """The settings of the evaluation, the same for every policy.

    Attributes:
        split: "validation" while settings are still being chosen, "test" for the final report.
        prompts: number of the split's prompts, evenly spaced; None for all.
        decodings: each is {name, temperature, samples}. The first one gives the headline numbers.
        lm_eval: tasks of lm-evaluation-harness.
        checkpoints: number of policies to score, at evenly spaced steps of preference training, including the last; 0
            scores the last only. A number above 0 is part of the align stage's key.
        max_cost: bound on the cost of a job's judgments, including failed tries and earlier runs; None for no bound.
        judgments_shown: maximum rows of a benchmark's table of judgments; None for all.
        contamination: the rules for prompts that count as seen in training. Such prompts are still evaluated.
        confidence: confidence level of intervals.
        n_bootstrap: resamples of the bootstrap and of the permutation test.
        backend: the `selfcontrast.generators.backend.Backend` that samples the answers.
        benchmarks: by name, a `selfcontrast.evaluation.benchmarks.benchmark.Benchmark`. Each has its own artifact.
    """

    split: str
    prompts: Annotated[Count, Field(ge=2)] | None
    decodings: list[Any]
    top_p: Fraction
    max_new_tokens: Count
    max_length: Count
    lm_eval: LmEval
    seed: Seed
    checkpoints: WholeNumber = field(metadata=NOT_IN_KEY)
    max_cost: NonNegative | None = field(metadata=NOT_IN_KEY)
    judgments_shown: Count | None = field(metadata=NOT_IN_KEY)
    contamination: Contamination = field(metadata=NOT_IN_KEY)
    confidence: ProperFraction = field(metadata=NOT_IN_KEY)
    n_bootstrap: Annotated[Count, Field(ge=100, le=1_000_000)] = field(metadata=NOT_IN_KEY)
    backend: Backend = field()
    benchmarks: dict[Text, Benchmark] = field(metadata=NOT_IN_KEY)

    def __post_init__(self) -> None:
        check_numbers(self, "evaluation")
        if self.split not in ("validation", "test"):
            raise UserError(f"evaluation.split={self.split}: unknown split. Use validation or test.")
        if not self.decodings:
            raise UserError("evaluation.decodings is empty. Name at least one decoding.")
        if self.max_cost is not None and not any(_priced(benchmark) for benchmark in self.benchmarks.values()):
            raise UserError(
                f"evaluation.max_cost={self.max_cost:g} needs a judge with a price: judge.reading.price={{prompt: …}}"
            )
        if self.split in self.benchmarks:
            raise UserError(f"evaluation.benchmarks.{self.split}: a split has this name. Rename the benchmark.")
        if self.checkpoints and self.sampled is None:
            raise UserError(
                f"evaluation.checkpoints={self.checkpoints} needs samples from the policy itself to estimate its KL: "
                "add a decoding with temperature 1 and set evaluation.top_p=1, or set evaluation.checkpoints=0."
            )
        names = [decoding.name for decoding in self.named_decodings]
        if len(set(names)) < len(names):
            raise UserError(f"evaluation.decodings: {', '.join(names)}: two decodings have the same name. Rename one.")
        for decoding in self.named_decodings:
            _ = self.decoding(decoding)

    @property
    def named_decodings(self) -> list[NamedDecoding]:
        decodings: list[NamedDecoding] = convert(self.decodings, list[NamedDecoding], "evaluation.decodings")
        return decodings

    @property
    def headline_decoding(self) -> str:
        """The name of the first decoding, which gives the headline numbers."""
        return self.named_decodings[0].name

    @property
    def sampled(self) -> NamedDecoding | None:
        """The first decoding that samples from the policy itself: temperature 1, without truncation."""
        return next(
            (decoding for decoding in self.named_decodings if decoding.temperature == 1 and self.top_p == 1), None
        )

    def of_checkpoints(self) -> "Evaluation":
        """Return the settings for an intermediate checkpoint: only the decoding from which its KL is estimated."""
        decodings = [self.decodings[i] for i, decoding in enumerate(self.named_decodings) if decoding == self.sampled]
        return replace(self, decodings=decodings, lm_eval=replace(self.lm_eval, tasks=[]))

    def decoding(self, decoding: NamedDecoding) -> Decoding:
        return Decoding(decoding.samples, decoding.temperature, self.top_p, self.max_new_tokens, self.max_length)

    def choose(self, splits: dict[Split, list[Example]]) -> list[Example]:
        """Choose the evaluated prompts, evenly spaced over the split."""
        examples = splits["test" if self.split == "test" else "validation"]
        if self.prompts is None or self.prompts >= len(examples):
            return examples
        return [examples[i] for i in np.linspace(0, len(examples) - 1, self.prompts).round().astype(int)]


def _priced(benchmark: Any) -> bool:
    """Return True if the benchmark's judge has a price."""
    judge = getattr(benchmark, "judge", None)
    return judge is not None and judge.cost([]) is not None


@dataclass(frozen=True)
class Policy:
    """The evaluated policy.

    Attributes:
        label: the policy's name in the job.
        folder: the model's folder.
        dtype: the type in which the model's weights are loaded.
    """

    label: str
    folder: Path
    dtype: str
    device: str


def evaluate(
    folder: Path,
    settings: Evaluation,
    policy: Policy,
    examples: Sequence[Example],
    verifier: Verifier | None,
    encoder: Encoder,
    responder: Responder,
) -> dict[str, Any]:
    """Write answers with their scores, target likelihoods and lm-eval's results to `folder`.

    Without a verifier, each answer gets its cosine similarity to the target instead of a score, as a proxy.

    Raises:
        UserError: for a score, similarity or log-probability that is not finite; the message names the example.
    """
    from selfcontrast.evaluation.likelihood import target_log_probs

    model, label, device = policy.folder, policy.label, policy.device
    renderer = Renderer(load_tokenizer(model))
    dialogue = DialogueSampler(responder, model, renderer, settings.seed, folder / RESUME)
    by_id = {example.id: example for example in examples}
    frames = []
    with responder.engine.ready():
        for decoding in settings.named_decodings:
            sampled = dialogue.play(examples, settings.decoding(decoding), f"{label} {decoding.name}")
            frame = pd.DataFrame([vars(answer) for answer in sampled])
            check_finite(f"the log-probability of {label}'s answer", frame["id"], frame["log_prob"])
            frame.insert(0, "decoding", decoding.name)
            frames.append(frame)
    answers = pd.concat(frames, ignore_index=True)
    answers["category"] = [by_id[name].category for name in answers["id"]]
    unread_text: dict[str, Any] = {}
    if verifier:
        columns = zip(answers["id"], answers["text"], answers["turn"], strict=True)
        answers["score"] = [verifier.score(by_id[name], text, int(turn)) for name, text, turn in columns]
        check_finite("the verifier's score of the answer", answers["id"], answers["score"], 0.0, 1.0)
    else:
        answers["similarity"], unread_text = _similarities(answers, [*map(renderer.as_read, examples)], encoder, device)
        check_finite("the similarity to the target of the answer", answers["id"], answers["similarity"])
    answers.to_parquet(folder / ANSWERS)
    with_target = [example for example in examples if example.has_target]
    without_target = len(examples) - len(with_target)
    counts = {"prompts_without_target": without_target, **unread_text} if without_target else unread_text
    likelihood = pd.DataFrame(
        target_log_probs(model, policy.dtype, renderer, with_target, device, settings.max_length),
        columns=["id", "log_prob", "tokens"],
    )
    check_finite(f"the log-probability under {label} of the target", likelihood["id"], likelihood["log_prob"])
    likelihood.to_parquet(folder / LIKELIHOOD)
    results = run_tasks(settings.lm_eval, model, with_target, renderer, device, settings.seed)
    (folder / LM_EVAL).write_text(json.dumps(results, indent=1))
    return {"prompts": len(examples), "answers": len(answers), "tokens": int(answers["tokens"].sum()), **counts}


def _similarities(
    answers: pd.DataFrame, examples: Sequence[Example], encoder: Encoder, device: str
) -> tuple[list[float], dict[str, Any]]:
    """Return each answer's cosine to its target, and how much text the encoder did not read."""
    target_of = {example.id: example.target for example in examples}
    targets = [target_of[name] for name in answers["id"]]
    texts = sorted({*targets, *answers["text"]})
    row = {text: i for i, text in enumerate(texts)}
    with encoder.open(device) as encode:
        vectors, counts = encode(texts), unread(encode, texts)
    unread_text = report_unread(
        "evaluate", counts, "tokens", "raise encoder.max_tokens, or use encoder.long_texts=windows"
    )
    pairs = zip(answers["text"], targets, strict=True)
    return [float(vectors[row[text]] @ vectors[row[target]]) for text, target in pairs], unread_text
