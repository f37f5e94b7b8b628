"""What benchmarks with a judge have in common."""

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfcontrast.constrained import Count, Fraction, check_numbers
from selfcontrast.data.example import Example, Verifier
from selfcontrast.errors import UserError
from selfcontrast.evaluation.benchmarks.answers import Asking
from selfcontrast.evaluation.judges import Judge, Judgment
from selfcontrast.evaluation.judges.panel import disagreement, has_verifier
from selfcontrast.models.truncation import Counts, report_unread
from selfcontrast.store import fields_of
from selfcontrast.store.content import Content

log = logging.getLogger(__name__)


def file_hash(path: str | None) -> str | None:
    """Of a file's content, which decides a result as its place does not."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else None


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Over the held-out prompts, where a subclass says nothing else.

    Attributes:
        limit: the first so many of what is judged; None for all.
        min_coverage: the share of judgments that must be usable.
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
        """Of its own questions or pairs; None where they are the data's."""
        return None

    @property
    def files(self) -> list[str]:
        """All that it reads."""
        return [] if self.file is None else [self.file]

    def read(self) -> None:
        """Reads its file. Raises `UserError`."""

    def check(self, verifier: Verifier | None) -> None:
        verified = has_verifier(self.judge)
        if self.file is not None:
            found = [place for place in map(Path, self.files) if place.is_file()]
            vars(self)["_contents"] = [Content.of(place) for place in found]  # no field: it is no setting
            self.read()
            if verified:
                raise UserError("judge=verifier grades the data's own prompts only: name another for those of a file")
        if verifier or not verified:
            self.judge.check(verifier)

    def left_out(self, examples: Sequence[Example], verifier: Verifier | None) -> str | None:
        if self.file is not None:
            return None
        if verifier is None and has_verifier(self.judge):
            return "there is no verifier"
        return self.nothing_in(examples)

    def nothing_in(self, examples: Sequence[Example]) -> str | None:
        """Why there is nothing to judge in these, if so."""
        return None

    def fingerprint(self) -> dict[str, Any]:
        """What decides its result. Raises `UserError` where a file is another than `check` has read, hours ago."""
        contents: list[Content] = vars(self).get("_contents", [])
        for content in contents:
            content.check("the benchmark's file")
        return fields_of(self)

    def asking(self, examples: Sequence[Example]) -> Asking | None:
        return None

    def own_prompts(self) -> dict[str, str]:
        return {}


def judged(
    name: str, judge: Judge, judgments: Sequence[Judgment], least: float, counts: Counts | None = None
) -> dict[str, Any]:
    """How many of the judgments can be used, what they cost, and how much the judge did not read.

    Raises:
        UserError: where they are fewer than the share `least`.
    """
    statuses = Counter(judgment.status for judgment in judgments)
    failed = {str(status): count for status, count in statuses.most_common() if status != "ok"}
    coverage = statuses["ok"] / max(1, len(judgments))
    said = ", ".join(f"{status} {count}" for status, count in failed.items())
    if coverage < least or not judgments:
        reason = next((j.reply for j in judgments if j.status != "ok"), "")
        raise UserError(
            f"{name}: {statuses['ok']} of {len(judgments)} judgments can be used, {coverage:.1%}, which is below "
            f"min_coverage={least:g} ({said}; such as: {' '.join(reason.split())[:160]!r}); those are kept: mend the "
            "judge and run the same command again"
        )
    cost, apart = judge.cost(judgments), disagreement(judgments)
    log.info(
        "%s: %d of %d judgments can be used%s%s%s",
        name,
        statuses["ok"],
        len(judgments),
        f" ({said})" if said else "",
        f", cost {cost:.2f}" if cost is not None else "",
        f", judges disagree in {apart['judges_disagree']:.1%}" if apart else "",
    )
    return {
        "judgments": len(judgments),
        "coverage": coverage,
        **failed,
        "judge_prompt_tokens": sum(j.prompt_tokens for j in judgments),
        "judge_completion_tokens": sum(j.completion_tokens for j in judgments),
        "cost": cost,
        **apart,
        **({} if counts is None else report_unread(name, counts, "text", "raise the judge's limit")),
    }
