"""The generate stage: sample N candidates for each training prompt, from the fine-tuned model or another one."""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from selfcontrast.constrained import Count, Fraction, Probability, Samples, Seed, Temperature, Text, check_numbers
from selfcontrast.data.candidates import FAILED, SCHEMA, Decoding, Request
from selfcontrast.data.example import Example
from selfcontrast.data.rendering import Renderer
from selfcontrast.data.template_checks import one_per_role_sequence
from selfcontrast.engines.work import Engine, read_table
from selfcontrast.errors import UserError
from selfcontrast.generators.backend import Backend, Responder, with_room
from selfcontrast.generators.source import OtherModel, check_system, with_system_message
from selfcontrast.models.loading import load_tokenizer
from selfcontrast.store import NOT_IN_KEY, RESUME, fields_of

log = logging.getLogger(__name__)

VERSION = 4
FILE, FAILURES = "candidates.parquet", "failed.json"
MAX_REASONS = 5  # reasons of failure to log


@dataclass(frozen=True)
class Generation:
    """Settings of sampling, and its backend.

    Attributes:
        prompts: number of training prompts, drawn with `seed`; None for all.
        max_failed_fraction: fraction of the prompts that may get no response. Such prompts are dropped and counted.
        backend: a `selfcontrast.generators.backend.Backend`.
        model: the model to sample from, as in `OtherModel`; None for the fine-tuned one. Training uses the sampled
            tokens, so the model must have the tokenizer of the fine-tuned model, which renders the prompts.
        model_revision: revision of `model` on the Hub; None for the newest commit, and for a folder.
        model_samples: number of a prompt's `samples` that `model` draws; the fine-tuned model draws the others. None if
            `model` draws all.
        system: text of a system message before each dialogue during sampling; None for no message. Log-probabilities
            are conditioned on the message too.
    """

    prompts: Count | None
    samples: Samples
    temperature: Temperature
    top_p: Fraction
    max_new_tokens: Count
    max_length: Count
    seed: Seed
    max_failed_fraction: Probability = field(metadata=NOT_IN_KEY)
    backend: Backend = field()
    model: Text | None = field()
    system: Text | None = field()
    model_revision: Text | None = field()
    model_samples: Count | None = field()

    def __post_init__(self) -> None:
        check_numbers(self, "generator")
        if self.temperature == 0:
            raise UserError(
                "generator.temperature=0 gives the same response every time. Raise it: negatives need sampling."
            )
        if self.model is None and (self.model_revision or self.model_samples):
            raise UserError(
                "generator.model_revision and generator.model_samples need generator.model. Set it, or both to null."
            )
        if self.model_samples is not None and self.model_samples >= self.samples:
            raise UserError(
                f"generator.model_samples={self.model_samples} must be below generator.samples={self.samples}, since "
                "the others come from the fine-tuned model. Use null to sample all from generator.model."
            )
        _ = self.decoding

    @property
    def other(self) -> OtherModel | None:
        """The model to sample from instead of the fine-tuned one or in addition to it; None if there is none."""
        return OtherModel(self.model, self.model_revision) if self.model else None

    @property
    def decoding(self) -> Decoding:
        return Decoding(self.samples, self.temperature, self.top_p, self.max_new_tokens, self.max_length)

    @property
    def follows_model(self) -> bool:
        return bool(self.backend.follows_model) and self.model is None

    @property
    def has_log_probs(self) -> bool:
        return bool(self.backend.has_log_probs)

    def fingerprint(self) -> dict[str, Any]:
        """Return the fields, without the optional ones that are null.

        So candidates that were sampled before these fields existed keep their key.
        """
        optional = ("model", "system", "model_revision", "model_samples")
        fields = {name: value for name, value in fields_of(self).items() if value is not None or name not in optional}
        return {**fields, **(self.other.content() if self.other else {})}

    def check(self, examples: Sequence[Example]) -> None:
        self.backend.check()
        if self.other:
            self.other.check()

    def check_rendering(self, renderer: Renderer, examples: Sequence[Example]) -> None:
        """Raise `UserError` if the fine-tuned model's chat template does not support `system`."""
        for example in one_per_role_sequence(examples) if self.system else ():
            check_system(renderer, example, str(self.system))

    def generate(
        self, folder: Path, model: Path, examples: Sequence[Example], engine: Engine, device: str
    ) -> dict[str, Any]:
        responder = Responder(self.backend, engine, device)
        if self.model_samples is None:
            return generate(folder, self, responder, model, examples)
        from selfcontrast.generators.mixed import generate_mixed  # imported here, because it imports this module

        return generate_mixed(folder, self, self.model_samples, responder, model, examples)


class Generator(Protocol):
    """A source of candidates: sampling (`Generation`), or existing responses."""

    @property
    def samples(self) -> int:
        """The maximum number of responses per prompt, N."""

    @property
    def follows_model(self) -> bool:
        """True if the candidates depend on the model, which several iterations require."""

    @property
    def has_log_probs(self) -> bool:
        """True if it can return log-probabilities of its candidates. A server may still omit them."""

    def check(self, examples: Sequence[Example]) -> None:
        """Raise `UserError` for errors that can be found before any compute. `examples` is the training split."""

    def generate(
        self, folder: Path, model: Path, examples: Sequence[Example], engine: Engine, device: str
    ) -> dict[str, Any]:
        """Write `folder/candidates.parquet`, with the candidates of a prompt together, in order. Return the counts.

        Args:
            model: the fine-tuned model's policy folder.
        """


def generate(
    folder: Path, settings: Generation, responder: Responder, model: Path, examples: Sequence[Example]
) -> dict[str, Any]:
    """Write all candidates to `folder/candidates.parquet`, grouped by prompt. Finished shards survive a crash.

    A permanently failed prompt is dropped, counted in the summary and listed in `folder/failed.json`. Until the
    artifact is published, the next run retries the failed prompts; afterwards they stay dropped.
    """
    renderer = Renderer(load_tokenizer(model))
    sampled_from = model
    if settings.other:
        settings.other.check_tokenizer(renderer)
        sampled_from = settings.other.files()
    chosen = choose(examples, settings.prompts, settings.seed)
    dialogues = ((e.id, with_system_message(e.prompt, settings.system)) for e in chosen)
    rendered = (Request(name, renderer.prompt(messages), messages) for name, messages in dialogues)
    requests = with_room(rendered, settings.decoding)
    if not requests:
        raise UserError(f"every prompt exceeds generator.max_length={settings.max_length} tokens. Raise it.")
    shards = folder / RESUME / "shards"
    files = responder.sample(sampled_from, requests, settings.decoding, settings.seed, shards, "generate")
    written, failures = _join(files, folder / FILE)
    _check_failures(folder, failures, len(requests), settings.max_failed_fraction)
    return {
        "prompts": len(requests) - len(failures),
        "prompts_without_room": len(chosen) - len(requests),
        "failed": len(failures),
        **({"failed_because": Counter(failures.values())} if failures else {}),
        **written,
    }


def _join(shards: Sequence[Path], file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Write all shards to one file, one at a time in memory.

    Return the counts, and the reason of each failed prompt.
    """
    responses = tokens = cut = 0
    failures: dict[str, str] = {}
    with pq.ParquetWriter(file, SCHEMA) as writer:
        for shard in shards:
            rows = read_table(shard, schema=SCHEMA)
            failed = pc.equal(rows["finish_reason"], FAILED)
            failures |= {row["id"]: row["text"] for row in rows.filter(failed).to_pylist()}
            table = rows.filter(pc.invert(failed))
            writer.write_table(table)
            responses += table.num_rows
            tokens += pc.sum(pc.list_value_length(table["token_ids"])).as_py() or 0
            cut += pc.sum(pc.equal(table["finish_reason"], "length")).as_py() or 0
    per_response = max(1, responses)
    counts = {
        "responses": responses,
        "tokens": tokens,
        "tokens_per_response": tokens / per_response,
        "cut_share": cut / per_response,
    }
    return counts, failures


def _check_failures(folder: Path, failures: Mapping[str, str], total: int, max_fraction: float) -> None:
    """List the failed prompts in `folder/failed.json`. Raise `UserError` if they are too many."""
    if not failures:
        return
    reasons = Counter(failures.values()).most_common()
    for reason, count in reasons[:MAX_REASONS]:
        log.warning("%d of %d prompts got no response: %s", count, total, reason)
    if len(failures) > max_fraction * total or len(failures) == total:
        raise UserError(
            f"{len(failures)} of {total} prompts got no response ({reasons[0][0]}). Remove the cause and run the same "
            f"command again, which retries only them; or raise generator.max_failed_fraction={max_fraction}."
        )
    (folder / FAILURES).write_text(json.dumps(failures, indent=1, ensure_ascii=False), encoding="utf-8")


def choose(examples: Sequence[Example], count: int | None, seed: int, part: int = 0) -> list[Example]:
    """Draw `count` examples without replacement, in their original order. In part 0, a smaller `count` draws a subset.

    Args:
        part: number of the draw, from 0; different parts share no example.
    """
    if count is None or (count >= len(examples) and not part):
        return list(examples)
    drawn = np.random.default_rng(seed).permutation(len(examples))[part * count : (part + 1) * count]
    return [examples[i] for i in sorted(drawn)]
