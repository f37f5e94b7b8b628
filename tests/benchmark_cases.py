"""Build subjects of benchmarks, and a fake judge whose verdicts the test gives."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from judge_cases import judge_context
from selfcontrast.data.example import Example, Verifier
from selfcontrast.engines.local import Local
from selfcontrast.evaluation.benchmarks.answers import OWN
from selfcontrast.evaluation.benchmarks.benchmark import Subject
from selfcontrast.evaluation.evaluate import ANSWERS
from selfcontrast.evaluation.judges import Case, JudgeContext, Judging, Judgment
from selfcontrast.evaluation.lm_eval import LmEval
from selfcontrast.generators.backend import Responder
from selfcontrast.generators.hf import HF


@dataclass(frozen=True)
class FakeJudge:
    """A judge that applies `verdict` to each case and records the cases."""

    verdict: Callable[[Case], Judgment]
    cases: list[Case] = field(default_factory=list)

    def check(self, verifier: Verifier | None) -> None: ...

    def fingerprint(self) -> dict[str, Any]:
        return {}

    def cost(self, judgments: Sequence[Judgment]) -> float | None:
        return None

    @contextmanager
    def open(self, context: JudgeContext) -> Iterator[Judging]:
        def judging(cases: Sequence[Case]) -> list[Judgment]:
            self.cases.extend(cases)
            return [self.verdict(case) for case in cases]

        yield judging


def write_answers(folder: Path, answers: dict[tuple[str, int], list[str]]) -> Path:
    """Write answers as the stage `evaluate` does, with the columns that benchmarks read."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"decoding": "T=1", "id": name, "sample": sample, "turn": turn, "text": text}
        for (name, sample), texts in answers.items()
        for turn, text in reversed(list(enumerate(texts)))
    ]
    pd.DataFrame([*rows, {**rows[0], "decoding": "greedy", "text": "of another decoding"}]).to_parquet(folder / ANSWERS)
    return folder


def subject(examples: Sequence[Example], scores: Path, **changes: Any) -> Subject:
    settings: dict[str, Any] = {
        "label": "SFT",
        "scores": scores,
        "baseline": None,
        "examples": examples,
        "decoding": "T=1",
        "context": judge_context(scores / "judgments"),
    }
    return Subject(**{**settings, **changes})


def sample_subject(benchmark: Any, examples: Sequence[Example], scores: Path, policy: Path, **changes: Any) -> Subject:
    """Answer the benchmark's questions with `policy`, write the answers to `scores`, and return the subject."""
    scores.mkdir(parents=True)
    benchmark.answer_request(examples).answer(scores, policy, Responder(HF("float32", 4), Local(2, 1), "cpu"), "SFT")
    return subject(examples, scores, decoding=OWN, **changes)


def lm_eval(*tasks: str, **changes: Any) -> LmEval:
    settings: dict[str, Any] = {
        "tasks": list(tasks),
        "local": {},
        "limit": None,
        "fewshot": None,
        "apply_chat_template": True,
        "max_length": 120,
        "confirm_run_unsafe_code": False,
        "batch_size": 32,
        "backend": HF("float32", 32),
    }
    return LmEval(**{**settings, **changes})
