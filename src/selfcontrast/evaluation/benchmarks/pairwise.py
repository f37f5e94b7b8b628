"""Let a judge compare the policy's answers with the SFT model's, with the targets, or with another model's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfcontrast.constrained import Samples, Text
from selfcontrast.data.example import Example
from selfcontrast.errors import UserError
from selfcontrast.evaluation.alpaca_eval import Output, read_outputs
from selfcontrast.evaluation.benchmarks.answers import AnswerRequest
from selfcontrast.evaluation.benchmarks.benchmark import Line, Options, Subject, answers_of
from selfcontrast.evaluation.benchmarks.judge_benchmark import JudgeBenchmark, QuestionBenchmark, file_hash
from selfcontrast.evaluation.benchmarks.pairs import judge_pairs, pair_lines, pairs_of
from selfcontrast.evaluation.judges import Case

OPPONENTS = ("target", "SFT")


@dataclass(frozen=True, kw_only=True)
class Pairwise(JudgeBenchmark):
    """Compare answers to the held-out prompts with the targets, or with the SFT model's answers.

    Attributes:
        against: "target" or "SFT".
        samples: answers per prompt to compare. If a prompt has fewer, all are compared.
    """

    against: str
    samples: Samples

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.against not in OPPONENTS:
            raise UserError(
                f"against={self.against}: unknown opponent. Use {' or '.join(OPPONENTS)}. To compare with a file of "
                "answers, use benchmark=alpaca_eval."
            )

    @property
    def relative(self) -> bool:
        return self.against == "SFT"

    def empty_reason(self, examples: Sequence[Example]) -> str | None:
        return None if self._prompts(examples) else "no prompt has a target to compare with"

    def run(self, folder: Path, subject: Subject) -> dict[str, Any]:
        answers = answers_of(subject.scores, subject.decoding)
        others = answers_of(subject.baseline, subject.decoding) if self.relative and subject.baseline else None
        pairs = []
        for example in self._prompts(subject.examples):
            for sample in range(self.samples):
                if (answer := answers.get((example.id, sample))) is None:
                    continue
                opponent = (example.target,) if others is None else others[example.id, sample]
                pairs.append(_pair(example, answer, opponent, sample))
        return judge_pairs(folder, f"pairwise {subject.label}", self.judge, pairs, subject, self.min_coverage)

    def lines(self, folders: Mapping[str, Path], options: Options) -> list[Line]:
        return pair_lines(pairs_of(folders), self.against, options)

    def _prompts(self, examples: Sequence[Example]) -> list[Example]:
        """Select prompts that can be compared. A dialogue's target answers only the last turn, so it is not used."""
        return [e for e in examples if self.relative or (e.has_target and not e.turns)][: self.limit]


@dataclass(frozen=True, kw_only=True)
class AlpacaEval(QuestionBenchmark):
    """Compare answers with an opponent's outputs for the same instructions, from a file in AlpacaEval's format.

    Attributes:
        outputs: file of the opponent's outputs, one per instruction. Length control uses the file's
            `instruction_difficulty`, which AlpacaEval's own file has. Without that column, difficulties are estimated.
    """

    outputs: Text = field(metadata={"in_key_as": file_hash})

    @property
    def file(self) -> str | None:
        return self.outputs

    def read(self) -> None:
        self._difficulties()

    def own_prompts(self) -> dict[str, str]:
        return {str(i): other.instruction for i, other in enumerate(self._opponents())}

    def answer_request(self, examples: Sequence[Example]) -> AnswerRequest | None:
        return AnswerRequest([(self.decoding, self._instructions())], self.seed)

    def run(self, folder: Path, subject: Subject) -> dict[str, Any]:
        answers = answers_of(subject.scores, subject.decoding)
        pairs = [_pair(example, answers[example.id, 0], (example.target,), 0) for example in self._instructions()]
        return judge_pairs(folder, f"alpaca_eval {subject.label}", self.judge, pairs, subject, self.min_coverage)

    def lines(self, folders: Mapping[str, Path], options: Options) -> list[Line]:
        return pair_lines(pairs_of(folders), "the file", options, self._difficulties())

    def _difficulties(self) -> dict[str, float] | None:
        """Return difficulties by instruction id; None if the file has none. Raise `UserError` if only some have one."""
        values = {str(i): other.difficulty for i, other in enumerate(self._opponents())}
        known = {name: value for name, value in values.items() if value is not None}
        if known and len(known) < len(values):
            raise UserError(
                f"outputs={self.outputs}: {len(values) - len(known)} of {len(values)} instructions have no "
                "'instruction_difficulty'. Give it for all, or for none."
            )
        return known or None

    def _opponents(self) -> list[Output]:
        return list(read_outputs(self.outputs, "outputs").values())[: self.limit]

    def _instructions(self) -> list[Example]:
        """Return the instructions, with the file's outputs as targets, stripped of outer white space like answers."""
        outputs = enumerate(self._opponents())
        return [Example(str(i), [{"role": "user", "content": o.instruction}], o.output.strip()) for i, o in outputs]


def _pair(example: Example, answer: tuple[str, ...], opponent: tuple[str, ...], sample: int) -> Case:
    return Case(example, len(answer) - 1, (answer, opponent), sample=sample)
