"""A judge in this process: a chat model of transformers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfcontrast.data.candidates import Decoding, Request
from selfcontrast.data.example import Verifier
from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError
from selfcontrast.evaluation.judges.judgment import Case, Judging, Judgment, Surroundings
from selfcontrast.evaluation.judges.ledger import Budget
from selfcontrast.evaluation.judges.reading import Done, Reading, Reply
from selfcontrast.generators.hf import HF
from selfcontrast.models.loading import folder_hash, load_tokenizer
from selfcontrast.store import NOT_IN_KEY, settings_of


@dataclass(frozen=True)
class HFJudge:
    """Attributes:
    path: folder of the model, with a chat template.
    max_length: tokens of prompt and reply together.
    batch: judgments asked for at once, and so lost where the process is killed.
    """

    path: str
    precision: str
    temperature: float
    max_length: int
    reading: Reading = field(metadata=NOT_IN_KEY)
    batch: int = field(metadata=NOT_IN_KEY)

    def check(self, verifier: Verifier | None) -> None:
        if not (Path(self.path) / "config.json").is_file():
            raise UserError(f"judge.path={self.path}: no folder of a model; download it first, and name the folder")
        Renderer(load_tokenizer(Path(self.path)))

    def fingerprint(self) -> dict[str, Any]:
        return {
            **{name: value for name, value in settings_of(self).items() if name != "path"},
            "model": folder_hash(Path(self.path)),
            "max_tokens": self.reading.max_tokens,
            "max_characters": self.reading.max_characters,
        }

    def cost(self, judgments: Sequence[Judgment]) -> float | None:
        return self.reading.cost(judgments)

    @contextmanager
    def open(self, surroundings: Surroundings) -> Iterator[Judging]:
        fingerprint = self.fingerprint()

        def judging(cases: Sequence[Case]) -> list[Judgment]:
            # Loaded only where something is left to ask for.
            def ask(prompts: Sequence[str], attempt: int, budget: Budget, done: Done) -> None:
                self._ask(surroundings.device, prompts, attempt, done)

            return self.reading.judge(cases, fingerprint, surroundings.judgments, ask)

        yield judging

    def _ask(self, device: str, prompts: Sequence[str], attempt: int, done: Done) -> None:
        renderer = Renderer(load_tokenizer(Path(self.path)))
        decoding = Decoding(1, self.temperature, 1.0, self.reading.max_tokens, self.max_length)
        requests = {at: self._request(renderer, at, prompt) for at, prompt in enumerate(prompts)}
        fitting = [(at, r) for at, r in requests.items() if len(r.prompt) < self.max_length]
        for at, request in requests.items():
            if len(request.prompt) >= self.max_length:
                done(at, Reply("truncated", f"the prompt fills all {self.max_length} tokens of judge.max_length"))
        with HF(self.precision, self.batch).open(Path(self.path), device) as sample:
            for begin in range(0, len(fitting), self.batch):
                some = fitting[begin : begin + self.batch]
                found = sample([request for _, request in some], decoding, attempt)
                for (at, request), reply in zip(some, found, strict=True):
                    finish: Any = "stop" if reply.finish_reason == "stop" else "truncated"
                    done(at, Reply(finish, reply.text, len(request.prompt), len(reply.token_ids)))

    def _request(self, renderer: Renderer, at: int, prompt: str) -> Request:
        return Request(str(at), renderer.prompt([{"role": "user", "content": prompt}]))
