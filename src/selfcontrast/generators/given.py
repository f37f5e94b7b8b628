"""Responses that are there already, as candidates: tokenized as training would, and counted as sampling's are."""

import logging
from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from tqdm import tqdm

from selfcontrast.data.candidates import SCHEMA, Candidate, candidates_table
from selfcontrast.data.example import Example
from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError
from selfcontrast.generators.generate import FILE
from selfcontrast.models.loading import load_tokenizer

log = logging.getLogger(__name__)

WRITTEN = 1000  # prompts at a time


def write_given(
    folder: Path, model: Path, examples: Sequence[Example], responses: Mapping[str, Sequence[str]], max_length: int
) -> dict[str, Any]:
    """Writes `folder/candidates.parquet`, the prompts in their own order; returns the counts.

    Args:
        model: the policy folder whose tokenizer is used, here, on one core.
        responses: per example id its responses; one that is longer than `max_length` tokens with its prompt is left
            out and counted.

    Raises:
        UserError: where none has room.
    """
    renderer = Renderer(load_tokenizer(model))
    prompts = written = tokens = long = changed = 0
    with pq.ParquetWriter(folder / FILE, SCHEMA) as writer:
        for start in tqdm(range(0, len(examples), WRITTEN), desc="candidates", unit="k prompts", disable=None):
            rows: list[Candidate] = []
            for example in examples[start : start + WRITTEN]:
                found = _candidates(renderer, example, responses[example.id], max_length)
                changed += sum(c.text != responses[example.id][c.sample].strip() for c in found)
                long += len(responses[example.id]) - len(found)
                prompts += bool(found)
                rows += found
            written += len(rows)
            tokens += sum(len(row.token_ids) for row in rows)
            writer.write_table(candidates_table(rows))
    if not written:
        raise UserError(f"no response has room in generator.max_length={max_length}: raise it")
    if long:
        log.warning("%d of %d responses are longer than generator.max_length: left out", long, long + written)
    if changed:
        log.warning(
            "%d of %d responses are read as another text, such as one that spells a special token: candidates are "
            "what their tokens spell",
            changed,
            written,
        )
    return {
        "prompts": prompts,
        "prompts_without_room": len(examples) - prompts,
        "responses": written,
        "responses_without_room": long,
        **({"responses_changed": changed} if changed else {}),
        "tokens": tokens,
        "tokens_per_response": tokens / written,
    }


def _candidates(renderer: Renderer, example: Example, responses: Sequence[str], max_length: int) -> list[Candidate]:
    """Those that have room, numbered as they were given."""
    room = max_length - len(renderer.prompt(example.prompt))
    ids = [renderer.response(example.prompt, given) for given in responses]
    return [
        Candidate(example.id, i, renderer.text(own), own, "stop", nan) for i, own in enumerate(ids) if len(own) <= room
    ]
