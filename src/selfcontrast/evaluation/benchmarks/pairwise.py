"""Which of two answers a judge prefers: the policy's, or the SFT model's, the target, another model's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfcontrast.constrained import Count, Samples, Seed, Temperature, Text
from selfcontrast.data.candidates import Decoding
from selfcontrast.data.example import Example
from selfcontrast.errors import UserError
from selfcontrast.evaluation.alpaca_eval import Output, read_outputs
from selfcontrast.evaluation.benchmarks.answers import Asking
from selfcontrast.evaluation.benchmarks.benchmark import Line, Options, Subject, answers_of
from selfcontrast.evaluation.benchmarks.judged import Judged, file_hash
from selfcontrast.evaluation.benchmarks.pairs import judge_pairs, pair_lines, pairs_of
from selfcontrast.evaluation.judges import Case

OPPONENTS = ("target", "SFT")


@dataclass(frozen=True, kw_only=True)
class Pairwise(Judged):
    """The held-out prompts' answers against their targets, or against the SFT model's answers.

    Attributes:
        against: "target" or "SFT".
        samples: answers per prompt that are compared, at most those that there are.
    """

    against: str
    samples: Samples

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.against not in OPPONENTS:
            raise UserError(f"against={self.against}: one of {', '.join(OPPONENTS)}; a file is benchmark=alpaca_eval's")

    @property
    def relative(self) -> bool:
        return self.against == "SFT"

    def nothing_in(self, examples: Sequence[Example]) -> str | None:
        return None if self._prompts(examples) else "no prompt has a target to compare with"

    def run(self, folder: Path, subject: Subject) -> dict[str, Any]:
        own = answers_of(subject.scores, subject.decoding)
        others = answers_of(subject.baseline, subject.decoding) if self.relative and subject.baseline else None
        pairs = []
        for example in self._prompts(subject.examples):
            for sample in range(self.samples):
                if (mine := own.get((example.id, sample))) is None:
                    continue
                theirs = (example.target,) if others is None else others[example.id, sample]
                pairs.append(_pair(example, mine, theirs, sample))
        return judge_pairs(folder, f"pairwise {subject.label}", self.judge, pairs, subject, self.min_coverage)

    def lines(self, folders: Mapping[str, Path], options: Options) -> list[Line]:
        return pair_lines(pairs_of(folders), self.against, options)

    def _prompts(self, examples: Sequence[Example]) -> list[Example]:
        """A dialogue that is played has a target for its last turn only: it is compared with another system's."""
        return [e for e in examples if self.relative or (e.has_target and not e.turns)][: self.limit]


@dataclass(frozen=True, kw_only=True)
class AlpacaEval(Judged):
    """Answers to the instructions of a file of outputs, in AlpacaEval's format, against those outputs.

    Attributes:
        outputs: the opponent's, one for each instruction. Length control uses their `instruction_difficulty`, as
            AlpacaEval's own file has it; without it each instruction's difficulty is estimated.
        seed: of sampling.
    """

    outputs: Text = field(metadata={"in_key_as": file_hash})
    temperature: Temperature
    max_new_tokens: Count
    max_length: Count
    seed: Seed

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self._decoding

    @property
    def _decoding(self) -> Decoding:
        return Decoding(1, self.temperature, 1.0, self.max_new_tokens, self.max_length)

    @property
    def file(self) -> str | None:
        return self.outputs

    def read(self) -> None:
        self._difficulties()

    def own_prompts(self) -> dict[str, str]:
        return {str(i): other.instruction for i, other in enumerate(self._others())}

    def asking(self, examples: Sequence[Example]) -> Asking | None:
        return Asking([(self._decoding, self._asked())], self.seed)

    def run(self, folder: Path, subject: Subject) -> dict[str, Any]:
        own = answers_of(subject.scores, subject.decoding)
        pairs = [_pair(example, own[example.id, 0], (example.target,), 0) for example in self._asked()]
        return judge_pairs(folder, f"alpaca_eval {subject.label}", self.judge, pairs, subject, self.min_coverage)

    def lines(self, folders: Mapping[str, Path], options: Options) -> list[Line]:
        return pair_lines(pairs_of(folders), "the file", options, self._difficulties())

    def _difficulties(self) -> dict[str, float] | None:
        """The instructions' difficulties by id, where the file has them. Raises `UserError` where it has some."""
        found = {str(i): other.difficulty for i, other in enumerate(self._others())}
        known = {name: value for name, value in found.items() if value is not None}
        if known and len(known) < len(found):
            raise UserError(
                f"outputs={self.outputs}: {len(found) - len(known)} of {len(found)} instructions have no "
                "'instruction_difficulty'. Give it for all, or for none."
            )
        return known or None

    def _others(self) -> list[Output]:
        return list(read_outputs(self.outputs, "outputs").values())[: self.limit]

    def _asked(self) -> list[Example]:
        """The instructions, with the file's outputs as targets: without white space around them, as a policy's are."""
        asked = enumerate(self._others())
        return [Example(str(i), [{"role": "user", "content": o.instruction}], o.output.strip()) for i, o in asked]


def _pair(example: Example, own: tuple[str, ...], other: tuple[str, ...], sample: int) -> Case:
    return Case(example, len(own) - 1, (own, other), sample=sample)
