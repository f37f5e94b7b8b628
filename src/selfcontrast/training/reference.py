"""Reference log-probabilities: computed once per (reference weights, sequence), before training, and stored.

All negatives of the pool are scored, so that every K, objective, beta and seed of a sweep reads the same file. No
reference model is in memory while the policy trains.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from selfcontrast.engines.work import Engine, Worker, cut, read_table
from selfcontrast.models.loading import load_model
from selfcontrast.models.log_probs import response_log_probs, token_log_probs
from selfcontrast.models.packing import Group
from selfcontrast.models.rows import why_unshared
from selfcontrast.models.shared_prompt import use_shared_prompt
from selfcontrast.progress import advance_unsaved
from selfcontrast.store import RESUME
from selfcontrast.training.hardware import Hardware
from selfcontrast.training.steps import Steps, as_microbatch, length, split_into_microbatches

VERSION = 3
FILE = "reference.parquet"
SCHEMA = pa.schema([("id", pa.string()), ("log_probs", pa.list_(pa.list_(pa.float32())))])


@dataclass(frozen=True)
class Scoring:
    """The task of scoring groups. It uses training's arithmetic, so that margins start at zero."""

    model: Path
    dtype: str
    hardware: Hardware

    @contextmanager
    def open(self, device: str) -> Iterator[Worker]:
        self.hardware.apply_threads()
        policy = load_model(self.model, self.dtype).to(device).eval()
        use_shared_prompt(policy, self.hardware.attention)
        yield lambda groups: self._table(policy, groups)

    def _table(self, policy: torch.nn.Module, groups: Sequence[Group]) -> pa.Table:
        scored = score_groups(policy, groups, self.hardware)
        return pa.Table.from_pylist([{"id": name, "log_probs": s} for name, s in scored.items()], schema=SCHEMA)


@torch.no_grad()
def score_groups(policy: torch.nn.Module, groups: Sequence[Group], hardware: Hardware) -> dict[str, list[list[float]]]:
    """Return the log-probability of every response token, in nats and target first, by group id."""
    scored = {}
    sharing = why_unshared(policy) is None
    for batch in split_into_microbatches(groups, hardware.fixed_tokens_per_microbatch(), sharing):
        packed = as_microbatch(batch, counts=True, sharing=sharing).packed.to(next(policy.parameters()).device)
        with hardware.autocast():
            values = iter(token_log_probs(policy, packed, hardware.logits_chunk).tolist())
        for group in batch:
            scored[group.id] = [[next(values) for _ in response] for response in group.responses]
        advance_unsaved(len(batch), "prompt")
    return scored


@torch.no_grad()
def score_in_microbatches(policy: Any, by_rank: Iterable[Steps], hardware: Hardware) -> dict[str, torch.Tensor]:
    """Return the summed log-probabilities [1 + K], target first, by group id, in the micro-batches of training.

    In low precision a token's log-probability depends on the other tokens of its micro-batch. So groups are scored in
    the micro-batches of the first epoch, in which the initial policy then equals its reference exactly. `policy` is
    left in evaluation mode.
    """
    policy.eval()
    scores: dict[str, torch.Tensor] = {}
    for steps in by_rank:
        microbatches = (part for step in range(min(steps.per_epoch, len(steps))) for part in steps[step].microbatches)
        for part in (part.packed.to(policy.device) for part in microbatches if part.counts):
            with hardware.autocast():
                log_probs = response_log_probs(policy, part, hardware.logits_chunk)
            scores |= dict(zip(part.ids, log_probs.cpu().unbind(), strict=True))
    return scores


def score_reference(folder: Path, engine: Engine, scoring: Scoring, groups: Sequence[Group], device: str) -> None:
    """Write the log-probability of every response token, target first, to `folder/reference.parquet`.

    Groups of similar length are scored together, in shards that survive a crash.
    """
    by_length = sorted(groups, key=lambda group: (length(group), group.id))
    shards = cut(by_length, engine.prompts_per_shard, folder / RESUME, lambda group: group.id)
    engine.run(scoring, shards, device, "reference", "prompt")
    with pq.ParquetWriter(folder / FILE, SCHEMA) as writer:
        for shard in shards:
            writer.write_table(read_table(shard.file, schema=SCHEMA))


def read_reference(folder: Path) -> dict[str, torch.Tensor]:
    """Return the summed log-probabilities [1 + pool], target first, by group id."""
    table = pq.read_table(folder / FILE)
    return {
        name: torch.tensor([sum(response) for response in responses])
        for name, responses in zip(table["id"].to_pylist(), table["log_probs"].to_pylist(), strict=True)
    }
