"""Define the base classes of benchmarks with a judge, and summarize their judgments."""

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfcontrast.constrained import Count, Fraction, Seed, Temperature, check_numbers
from selfcontrast.data.candidates import Decoding
from selfcontrast.data.example import Example, Verifier
from selfcontrast.errors import UserError
from selfcontrast.evaluation.benchmarks.answers import AnswerRequest
from selfcontrast.evaluation.judges import Judge, Judgment
from selfcontrast.evaluation.judges.panel import disagreement, has_verifier
from selfcontrast.models.truncation import Counts, report_unread
from selfcontrast.store import fields_of
from selfcontrast.store.content import Content

log = logging.getLogger(__name__)


def file_hash(path: str | None) -> str | None:
    """Hash a file's content. A result depends on the content, not on the path."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else None


@dataclass(frozen=True, kw_only=True)
class JudgeBenchmark:
    """A benchmark whose judge grades or compares answers: to the held-out prompts, or to a subclass's own questions.

    Attributes:
        limit: number of prompts or pairs that are judged, starting with the first; None for all.
        min_coverage: fraction of judgments that must be usable.
        judge: a `selfcontrast.evaluation.judges.Judge`.
    """

    limit: Count | None
    min_coverage: Fraction
    judge: Judge

    def __post_init__(self) -> None:
        check_numbers(self, "")

    @property
    def relative(self) -> bool:
        return False

    @property
    def file(self) -> str | None:
        """The file of the benchmark's own questions or pairs; None if it uses those of the data."""
        return None

    @property
    def files(self) -> list[str]:
        """All files that the benchmark reads."""
        return [] if self.file is None else [self.file]

    def read(self) -> None:
        """Read the benchmark's file; raise `UserError` if it is unusable."""

    def check(self, verifier: Verifier | None) -> None:
        needs_verifier = has_verifier(self.judge)
        if self.file is not None:
            files = [path for path in map(Path, self.files) if path.is_file()]
            vars(self)["_contents"] = [Content.of(file) for file in files]  # not a field, since it is not a setting
            self.read()
            if needs_verifier:
                raise UserError(
                    "judge=verifier grades only the data's own prompts. Choose another judge for the prompts of a file."
                )
        if verifier or not needs_verifier:
            self.judge.check(verifier)

    def skip_reason(self, examples: Sequence[Example], verifier: Verifier | None) -> str | None:
        if self.file is not None:
            return None
        if verifier is None and has_verifier(self.judge):
            return "there is no verifier"
        return self.empty_reason(examples)

    def empty_reason(self, examples: Sequence[Example]) -> str | None:
        """Return the reason why these examples have nothing to judge, or None."""
        return None

    def fingerprint(self) -> dict[str, Any]:
        """Return everything that decides the result; raise `UserError` if a file has changed since `check`."""
        contents: list[Content] = vars(self).get("_contents", [])
        for content in contents:
            content.check("the benchmark's file")
        return fields_of(self)

    def answer_request(self, examples: Sequence[Example]) -> AnswerRequest | None:
        return None

    def own_prompts(self) -> dict[str, str]:
        return {}


@dataclass(frozen=True, kw_only=True)
class QuestionBenchmark(JudgeBenchmark):
    """A benchmark with its own questions. Each question is answered once, all with the same decoding.

    Attributes:
        seed: seed of sampling.
    """

    temperature: Temperature
    max_new_tokens: Count
    max_length: Count
    seed: Seed

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.decoding  # raises `UserError` for impossible lengths

    @property
    def decoding(self) -> Decoding:
        return Decoding(1, self.temperature, 1.0, self.max_new_tokens, self.max_length)


def summarize_judgments(
    name: str, judge: Judge, judgments: Sequence[Judgment], min_coverage: float, counts: Counts | None = None
) -> dict[str, Any]:
    """Return how many judgments are usable, what they cost, and how much text the judge did not read.

    Raises:
        UserError: if the usable fraction is below `min_coverage`.
    """
    statuses = Counter(judgment.status for judgment in judgments)
    failed = {str(status): count for status, count in statuses.most_common() if status != "ok"}
    coverage = statuses["ok"] / max(1, len(judgments))
    failures = ", ".join(f"{status} {count}" for status, count in failed.items())
    if coverage < min_coverage or not judgments:
        reason = next((j.reply for j in judgments if j.status != "ok"), "")
        raise UserError(
            f"{name}: {statuses['ok']} of {len(judgments)} judgments are usable ({coverage:.1%}), below "
            f"min_coverage={min_coverage:g} ({failures}; for example {' '.join(reason.split())[:160]!r}). Usable "
            "judgments are kept. Fix the judge and run the same command again."
        )
    cost, panel = judge.cost(judgments), disagreement(judgments)
    log.info(
        "%s: %d of %d judgments are usable%s%s%s",
        name,
        statuses["ok"],
        len(judgments),
        f" ({failures})" if failures else "",
        f", cost {cost:.2f}" if cost is not None else "",
        f", judges disagree in {panel['judges_disagree']:.1%}" if panel else "",
    )
    return {
        "judgments": len(judgments),
        "coverage": coverage,
        **failed,
        "judge_prompt_tokens": sum(j.prompt_tokens for j in judgments),
        "judge_completion_tokens": sum(j.completion_tokens for j in judgments),
        "cost": cost,
        **panel,
        **({} if counts is None else report_unread(name, counts, "text", "raise the judge's limit")),
    }
