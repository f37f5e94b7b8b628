"""Stage generate: N candidates for each training prompt, from the fine-tuned model or another one."""

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
from selfcontrast.data.renderable import shapes
from selfcontrast.data.rendering import Renderer
from selfcontrast.engines.work import Engine, read_table
from selfcontrast.errors import UserError
from selfcontrast.generators.backend import Backend, Responder, with_room
from selfcontrast.generators.source import OtherModel, check_system, instructed
from selfcontrast.models.loading import load_tokenizer
from selfcontrast.store import NOT_IN_KEY, RESUME, fields_of

log = logging.getLogger(__name__)

VERSION = 4
FILE, FAILURES = "candidates.parquet", "failed.json"
SHOWN = 5  # reasons of failure


@dataclass(frozen=True)
class Generation:
    """What is sampled, and the backend that does it.

    Attributes:
        prompts: how many training prompts, drawn with `seed`; None for all.
        max_failed_fraction: of the prompts that may get no response; what fails is left out and counted up to there.
        backend: a `selfcontrast.generators.backend.Backend`.
        model: the model that is sampled from, as in `OtherModel`; None for the fine-tuned one. Tokens are trained on as
            sampled, so it must have the fine-tuned model's tokenizer, which renders the prompts.
        model_revision: of `model`, where it is a name on the hub.
        model_samples: how many of a prompt's `samples` come from `model`, and the others from the fine-tuned one; None
            for all of them.
        system: of a system message before each dialogue while it is sampled for; None for none. Log-probabilities are
            those given this message, too.
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
            raise UserError("generator.temperature=0 gives one response over and over: negatives need sampling")
        if self.model is None and (self.model_revision or self.model_samples):
            raise UserError(
                "generator.model_revision and model_samples need generator.model: give it, or set them to null"
            )
        if self.model_samples is not None and self.model_samples >= self.samples:
            raise UserError(
                f"generator.model_samples={self.model_samples} must be below generator.samples={self.samples}: the "
                "others come from the fine-tuned model. null: all come from generator.model"
            )
        _ = self.decoding

    @property
    def other(self) -> OtherModel | None:
        """The model that is sampled from in place of the fine-tuned one, or beside it."""
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
        """Its fields, but for those that are new and null: what was sampled before they existed stays known."""
        new = ("model", "system", "model_revision", "model_samples")
        own = {name: value for name, value in fields_of(self).items() if value is not None or name not in new}
        return {**own, **(self.other.content() if self.other else {})}

    def check(self, examples: Sequence[Example]) -> None:
        self.backend.check()
        if self.other:
            self.other.check()

    def check_rendering(self, renderer: Renderer, examples: Sequence[Example]) -> None:
        """Raise `UserError` where the fine-tuned model's chat template has no place for `system`."""
        for example in shapes(examples) if self.system else ():
            check_system(renderer, example, str(self.system))

    def generate(
        self, folder: Path, model: Path, examples: Sequence[Example], engine: Engine, device: str
    ) -> dict[str, Any]:
        responder = Responder(self.backend, engine, device)
        if self.model_samples is None:
            return generate(folder, self, responder, model, examples)
        from selfcontrast.generators.mixed import generate_mixed  # which needs this module

        return generate_mixed(folder, self, self.model_samples, responder, model, examples)


class Generator(Protocol):
    """Where candidates come from: sampled (`Generation`), or made elsewhere."""

    @property
    def samples(self) -> int:
        """N: the most responses of a prompt."""

    @property
    def follows_model(self) -> bool:
        """Whether another model gives other candidates, as rounds need."""

    @property
    def has_log_probs(self) -> bool:
        """Whether it can know the log-probabilities of its candidates. A server may still tell none."""

    def check(self, examples: Sequence[Example]) -> None:
        """Raises `UserError` for what can be known before any compute; `examples` are those of training."""

    def generate(
        self, folder: Path, model: Path, examples: Sequence[Example], engine: Engine, device: str
    ) -> dict[str, Any]:
        """Writes `folder/candidates.parquet`, a prompt's candidates together, in order; returns the counts.

        Args:
            model: the fine-tuned model's policy folder.
        """


def generate(
    folder: Path, settings: Generation, responder: Responder, model: Path, examples: Sequence[Example]
) -> dict[str, Any]:
    """Writes all candidates to `folder/candidates.parquet`, a prompt's together; finished shards survive a crash.

    A prompt that fails for good is left out, counted in the summary and named in `folder/failed.json`. Published like
    this, the artifact is final; before, the next run asks again for what failed.
    """
    renderer = Renderer(load_tokenizer(model))
    sampled_from = model
    if settings.other:
        settings.other.check_tokenizer(renderer)
        sampled_from = settings.other.files()
    chosen = choose(examples, settings.prompts, settings.seed)
    dialogues = ((e.id, instructed(e.prompt, settings.system)) for e in chosen)
    rendered = (Request(name, renderer.prompt(messages), messages) for name, messages in dialogues)
    requests = with_room(rendered, settings.decoding)
    if not requests:
        raise UserError(f"every prompt is longer than generator.max_length={settings.max_length} tokens: raise it")
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
    """All shards in one file, one at a time in memory; returns the counts, and what failed with its reason."""
    responses = tokens = cut = 0
    failures: dict[str, str] = {}
    with pq.ParquetWriter(file, SCHEMA) as writer:
        for shard in shards:
            whole = read_table(shard, schema=SCHEMA)
            failed = pc.equal(whole["finish_reason"], FAILED)
            failures |= {row["id"]: row["text"] for row in whole.filter(failed).to_pylist()}
            table = whole.filter(pc.invert(failed))
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


def _check_failures(folder: Path, failures: Mapping[str, str], asked: int, most: float) -> None:
    """Names what failed, in `folder/failed.json`. Raises `UserError` where that is too much."""
    if not failures:
        return
    reasons = Counter(failures.values()).most_common()
    for reason, count in reasons[:SHOWN]:
        log.warning("%d of %d prompts got no response: %s", count, asked, reason)
    if len(failures) > most * asked or len(failures) == asked:
        raise UserError(
            f"{len(failures)} of {asked} prompts got no response ({reasons[0][0]}): mend it and run the same command "
            f"again, which asks for these alone; or raise generator.max_failed_fraction={most}"
        )
    (folder / FAILURES).write_text(json.dumps(failures, indent=1, ensure_ascii=False), encoding="utf-8")


def choose(examples: Sequence[Example], count: int | None, seed: int, part: int = 0) -> list[Example]:
    """`count` examples drawn without replacement, in their own order; nested: fewer are a subset of more.

    Args:
        part: which of the draws that have no example in common, from 0.
    """
    if count is None or (count >= len(examples) and not part):
        return list(examples)
    drawn = np.random.default_rng(seed).permutation(len(examples))[part * count : (part + 1) * count]
    return [examples[i] for i in sorted(drawn)]
