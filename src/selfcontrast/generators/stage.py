"""Stage generate: N candidates for each training prompt, from the fine-tuned model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from selfcontrast.data.candidates import SCHEMA, Candidate, Decoding, Request
from selfcontrast.data.example import Example
from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError
from selfcontrast.generators.backend import Responder, with_room
from selfcontrast.models.loading import load_tokenizer
from selfcontrast.store import RESUME

VERSION = 2
FILE = "candidates.parquet"


@dataclass(frozen=True)
class Generation:
    """What is sampled, and the backend that does it.

    Attributes:
        prompts: how many training prompts, drawn with `seed`; None for all.
        backend: a `selfcontrast.generators.backend.Backend`.
    """

    prompts: int | None
    samples: int
    temperature: float
    top_p: float
    max_new_tokens: int
    max_length: int
    seed: int
    backend: Any = field()

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
    folder: Path, settings: Generation, responder: Responder, model: Path, examples: Sequence[Example]
) -> dict[str, Any]:
    """Writes all candidates to `folder/candidates.parquet`, a prompt's together; finished shards survive a crash."""
    renderer = Renderer(load_tokenizer(model))
    chosen = choose(examples, settings.prompts, settings.seed)
    requests = with_room((Request(e.id, renderer.prompt(e.prompt)) for e in chosen), settings.decoding)
    if not requests:
        raise UserError(f"every prompt is longer than generator.max_length={settings.max_length} tokens: raise it")
    shards = folder / RESUME / "shards"
    files = responder.sample(model, requests, settings.decoding, settings.seed, shards, "generate")
    return {
        "prompts": len(requests),
        "prompts_without_room": len(chosen) - len(requests),
        **_join(files, folder / FILE),
    }


def _join(shards: Sequence[Path], file: Path) -> dict[str, Any]:
    """All shards in one file, one at a time in memory; returns the counts."""
    responses = tokens = cut = 0
    with pq.ParquetWriter(file, SCHEMA) as writer:
        for shard in shards:
            table = pq.read_table(shard, schema=SCHEMA)
            writer.write_table(table)
            responses += table.num_rows
            tokens += pc.sum(pc.list_value_length(table["token_ids"])).as_py() or 0
            cut += pc.sum(pc.equal(table["finish_reason"], "length")).as_py() or 0
    per_response = max(1, responses)
    return {
        "responses": responses,
        "tokens": tokens,
        "tokens_per_response": tokens / per_response,
        "cut_share": cut / per_response,
    }


def choose(examples: Sequence[Example], count: int | None, seed: int) -> list[Example]:
    """`count` examples drawn without replacement, in their own order; nested: fewer are a subset of more."""
    if count is None or count >= len(examples):
        return list(examples)
    drawn = np.random.default_rng(seed).permutation(len(examples))[:count]
    return [examples[i] for i in sorted(drawn)]


def candidates_by_prompt(folder: Path) -> Iterator[tuple[str, list[Candidate]]]:
    """Example id and its candidates in order of sampling, one prompt after another: never all in memory."""
    with pq.ParquetFile(folder / FILE) as file:
        rows = (Candidate(**row) for batch in file.iter_batches() for row in batch.to_pylist())
        for name, candidates in groupby(rows, key=lambda candidate: candidate.id):
            yield name, list(candidates)
