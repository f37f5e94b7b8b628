"""The answers stage: sample a policy's answers to a benchmark's own questions.

This is a separate stage, so that another judge or another way of judging reuses the answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from selfcontrast.data.candidates import Decoding
from selfcontrast.data.example import Example
from selfcontrast.data.rendering import Renderer
from selfcontrast.evaluation.dialogue import DialogueSampler
from selfcontrast.evaluation.evaluate import ANSWERS
from selfcontrast.generators.backend import Responder
from selfcontrast.models.loading import load_tokenizer
from selfcontrast.store import RESUME
from selfcontrast.store.artifact import key_of

VERSION = 1
OWN = "own"  # the value of the column `decoding` for every question


@dataclass(frozen=True)
class AnswerRequest:
    """Questions to answer, grouped by decoding. `seed` is the seed of sampling."""

    questions: Sequence[tuple[Decoding, Sequence[Example]]]
    seed: int

    def fingerprint(self) -> dict[str, Any]:
        """Return everything that decides the answers, as JSON."""
        questions = [
            {"decoding": vars(decoding), "questions": [[e.id, e.prompt, e.turns] for e in examples]}
            for decoding, examples in self.questions
        ]
        return {"asked": key_of({"asked": questions}), "seed": self.seed}

    def answer(self, folder: Path, model: Path, responder: Responder, label: str) -> dict[str, Any]:
        """Write the answers to `folder`, in the format of the evaluate stage."""
        dialogue = DialogueSampler(responder, model, Renderer(load_tokenizer(model)), self.seed, folder / RESUME)
        with responder.engine.ready():
            answers = [
                answer
                for decoding, examples in self.questions
                for answer in dialogue.play(examples, decoding, f"{label} T={decoding.temperature:g}")
            ]
        frame = pd.DataFrame([vars(answer) for answer in answers]).drop(columns="token_ids")
        frame.insert(0, "decoding", OWN)
        frame.to_parquet(folder / ANSWERS)
        return {"answers": len(frame), "tokens": int(frame["tokens"].sum())}
