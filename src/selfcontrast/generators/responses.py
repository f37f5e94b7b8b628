"""Use existing responses as candidates. They are tokenized as in training, and counted as in sampling."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet as pq
from tqdm import tqdm

from selfcontrast.constrained import Count, Seed, check_numbers
from selfcontrast.data.candidates import SCHEMA, Candidate, candidates_table
from selfcontrast.data.example import Example
from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError
from selfcontrast.generators.generate import FILE
from selfcontrast.models.loading import load_tokenizer

log = logging.getLogger(__name__)

PROMPTS_PER_WRITE = 1000


@dataclass(frozen=True)
class ExistingResponses:
    """The settings of a generator that does not sample.

    Attributes:
        prompts: number of training prompts, drawn with `seed` as for sampling; None for all.
        max_length: bound on the tokens of prompt and response together. Longer responses are dropped and counted.
    """

    follows_model: ClassVar[bool] = False
    has_log_probs: ClassVar[bool] = False

    prompts: Count | None
    max_length: Count
    seed: Seed

    def __post_init__(self) -> None:
        check_numbers(self, "generator")


def write_responses(
    folder: Path, model: Path, examples: Sequence[Example], responses: Mapping[str, Sequence[str]], max_length: int
) -> dict[str, Any]:
    """Write `folder/candidates.parquet`, with the prompts in the order of `examples`. Return the counts.

    Args:
        model: policy folder with the tokenizer, which runs in this process, on one core.
        responses: the responses of each example id. A response is dropped and counted if it and its prompt have more
            than `max_length` tokens.

    Raises:
        UserError: if all responses are dropped.
    """
    renderer = Renderer(load_tokenizer(model))
    prompts = written = tokens = too_long = changed = 0
    with pq.ParquetWriter(folder / FILE, SCHEMA) as writer:
        for start in tqdm(
            range(0, len(examples), PROMPTS_PER_WRITE), desc="candidates", unit="k prompts", disable=None
        ):
            rows: list[Candidate] = []
            for example in examples[start : start + PROMPTS_PER_WRITE]:
                candidates = _candidates(renderer, example, responses[example.id], max_length)
                changed += sum(c.text != responses[example.id][c.sample].strip() for c in candidates)
                too_long += len(responses[example.id]) - len(candidates)
                prompts += bool(candidates)
                rows += candidates
            written += len(rows)
            tokens += sum(len(row.token_ids) for row in rows)
            writer.write_table(candidates_table(rows))
    if not written:
        raise UserError(f"no response has room in generator.max_length={max_length}. Raise it.")
    if too_long:
        log.warning("dropped %d of %d responses, which exceed generator.max_length", too_long, too_long + written)
    if changed:
        log.warning(
            "%d of %d responses change when tokenized, for example if they spell a special token. Candidates have the "
            "text of their tokens.",
            changed,
            written,
        )
    return {
        "prompts": prompts,
        "prompts_without_room": len(examples) - prompts,
        "responses": written,
        "responses_without_room": too_long,
        **({"responses_changed": changed} if changed else {}),
        "tokens": tokens,
        "tokens_per_response": tokens / written,
    }


def _candidates(renderer: Renderer, example: Example, responses: Sequence[str], max_length: int) -> list[Candidate]:
    """Return the responses that have room as candidates. A candidate's sample number is the response's index."""
    room = max_length - len(renderer.prompt(example.prompt))
    ids = [renderer.response(example.prompt, response) for response in responses]
    return [
        Candidate(example.id, i, renderer.text(token_ids), token_ids, "stop", nan)
        for i, token_ids in enumerate(ids)
        if len(token_ids) <= room
    ]
