"""What a benchmark has a policy answer beyond the held-out prompts: a stage of its own.

So another judge, or another way of judging, asks for no answer again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from selfcontrast.data.candidates import Decoding
from selfcontrast.data.example import Example
from selfcontrast.data.rendering import Renderer
from selfcontrast.evaluation.dialogue import Player
from selfcontrast.evaluation.evaluate import ANSWERS
from selfcontrast.generators.backend import Responder
from selfcontrast.models.loading import load_tokenizer
from selfcontrast.store import RESUME
from selfcontrast.store.artifact import key_of

VERSION = 1
OWN = "own"  # what the decoding is called, whichever a question has


@dataclass(frozen=True)
class Asking:
    """Questions with their decodings; `seed` is of sampling."""

    asked: Sequence[tuple[Decoding, Sequence[Example]]]
    seed: int

    def fingerprint(self) -> dict[str, Any]:
        """What decides the answers, as JSON."""
        asked = [
            {"decoding": vars(decoding), "questions": [[e.id, e.prompt, e.turns] for e in examples]}
            for decoding, examples in self.asked
        ]
        return {"asked": key_of({"asked": asked}), "seed": self.seed}

    def answer(self, folder: Path, model: Path, responder: Responder, label: str) -> dict[str, Any]:
        """Writes the answers to `folder`, as the stage evaluate writes its own."""
        player = Player(responder, model, Renderer(load_tokenizer(model)), self.seed, folder / RESUME)
        with responder.engine.ready():
            played = [
                answer
                for decoding, examples in self.asked
                for answer in player.play(examples, decoding, f"{label} T={decoding.temperature:g}")
            ]
        frame = pd.DataFrame([vars(answer) for answer in played]).drop(columns="token_ids")
        frame.insert(0, "decoding", OWN)
        frame.to_parquet(folder / ANSWERS)
        return {"answers": len(frame), "tokens": int(frame["tokens"].sum())}
