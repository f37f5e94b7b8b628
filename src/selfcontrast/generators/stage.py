"""Stage generate: N candidates for each training prompt, from the fine-tuned model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from selfcontrast.data.candidates import Candidate, Decoding, Request, read_candidates, write_candidates
from selfcontrast.data.example import Example
from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError
from selfcontrast.generators.hf import with_room
from selfcontrast.models.loading import load_tokenizer
from selfcontrast.store import RESUME

VERSION = 1
FILE = "candidates.parquet"


@dataclass(frozen=True)
class Generation:
    """What is sampled, and the engine that does it.

    Attributes:
        prompts: how many training prompts, drawn with `seed`; None for all.
        engine: e.g. `selfcontrast.generators.hf.HFGenerator`.
    """

    prompts: int | None
    samples: int
    temperature: float
    top_p: float
    max_new_tokens: int
    max_length: int
    seed: int
    engine: Any = field()

    def __post_init__(self) -> None:
        if self.prompts is not None and self.prompts < 1:
            raise UserError(f"generator.prompts={self.prompts}: at least 1, or null for all")
        if self.temperature == 0:
            raise UserError("generator.temperature=0 gives one response over and over: negatives need sampling")
        _ = self.decoding

    @property
    def decoding(self) -> Decoding:
        return Decoding(self.samples, self.temperature, self.top_p, self.max_new_tokens, self.max_length)


def generate(
    folder: Path, settings: Generation, model: Path, examples: Sequence[Example], device: str
) -> dict[str, Any]:
    """Writes all candidates to `folder/candidates.parquet`; finished shards survive a crash."""
    renderer = Renderer(load_tokenizer(model))
    chosen = choose(examples, settings.prompts, settings.seed)
    requests = with_room((Request(e.id, renderer.prompt(e.prompt)) for e in chosen), settings.decoding)
    if not requests:
        raise UserError(f"every prompt is longer than generator.max_length={settings.max_length} tokens: raise it")
    found = settings.engine.generate(
        model, requests, settings.decoding, settings.seed, device, folder / RESUME / "shards", "generate"
    )
    candidates = [candidate for candidates in found.values() for candidate in candidates]
    write_candidates(folder / FILE, candidates)
    lengths = [len(candidate.token_ids) for candidate in candidates]
    return {
        "prompts": len(requests),
        "prompts_without_room": len(chosen) - len(requests),
        "responses": len(candidates),
        "tokens": sum(lengths),
        "tokens_per_response": float(np.mean(lengths)),
        "cut_share": float(np.mean([c.finish_reason == "length" for c in candidates])),
    }


def choose(examples: Sequence[Example], count: int | None, seed: int) -> list[Example]:
    """`count` examples drawn without replacement, in their own order; nested: fewer are a subset of more."""
    if count is None or count >= len(examples):
        return list(examples)
    drawn = np.random.default_rng(seed).permutation(len(examples))[:count]
    return [examples[i] for i in sorted(drawn)]


def candidates_by_prompt(folder: Path) -> dict[str, list[Candidate]]:
    """Per example id its candidates, in order of sampling."""
    found: dict[str, list[Candidate]] = {}
    for candidate in read_candidates(folder / FILE):
        found.setdefault(candidate.id, []).append(candidate)
    return found
