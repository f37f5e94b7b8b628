"""The score stage: compute and store the reward of every target and candidate, for reuse by all selectors."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from math import nan
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from selfcontrast.data.example import Example, Verifier
from selfcontrast.engines.work import Engine, Shard, Worker, read_table
from selfcontrast.errors import UserError
from selfcontrast.filters.pool import Floats
from selfcontrast.models.reward import Response, RewardModel
from selfcontrast.models.truncation import Counts, report_unread, unread
from selfcontrast.store import RESUME

VERSION = 3
FILE = "rewards.parquet"
SCHEMA = pa.schema([("id", pa.string()), ("target", pa.float32()), ("candidates", pa.list_(pa.float32()))])


@dataclass(frozen=True)
class ScoreTask:
    """The engine's task of scoring the distinct responses of each prompt, the target included."""

    model: RewardModel

    @contextmanager
    def open(self, device: str) -> Iterator[Worker]:
        with self.model.open(device) as reward:

            def work(prompts: Sequence[Sequence[Response]]) -> pa.Table:
                responses = [response for prompt in prompts for response in prompt]
                return _table(prompts, reward(responses), unread(reward, responses))

            yield work


def score(
    folder: Path,
    model: RewardModel,
    engine: Engine,
    prompts: Iterable[tuple[Example, Sequence[str]]],
    device: str,
) -> dict[str, Any]:
    """Write the rewards of every prompt's target and candidates to `folder`, in the candidates' order.

    Args:
        prompts: examples with their candidates' texts.

    Returns:
        Counts for the stage's summary.
    """
    items: list[list[Response]] = []
    names: list[str] = []
    rows: list[list[int]] = []  # per prompt: indices of target and candidates among its distinct responses
    for example, texts in prompts:
        names.append(example.id)
        index: dict[str, int] = {}
        rows.append([index.setdefault(text, len(index)) for text in (example.target, *texts)])
        items.append([(example.prompt, text) for text in index])
    parts = _parts(items, engine.texts_per_shard)
    shards = [Shard(folder / RESUME / f"{_digest(p)}.parquet", p, sum(map(len, p))) for p in parts]
    engine.run(ScoreTask(model), shards, device, "score", "response")
    next_rows, next_names = iter(rows), iter(names)
    counts: list[list[int]] = []
    with pq.ParquetWriter(folder / FILE, SCHEMA) as writer:
        for shard in shards:
            table = read_table(shard.file)
            counts += [row for prompt in table["unread"].to_pylist() for row in prompt]
            rewards = [
                np.array(distinct, dtype=np.float32)[next(next_rows)] for distinct in table["rewards"].to_pylist()
            ]
            ids = list(islice(next_names, len(rewards)))
            columns = {"id": ids, "target": [r[0] for r in rewards], "candidates": [r[1:] for r in rewards]}
            writer.write_table(pa.table(columns, schema=SCHEMA))
    unread_counts = np.array(counts).reshape(-1, 2)
    truncation = report_unread("score", unread_counts, "tokens", "raise filter.reward_model.max_tokens")
    return {"prompts": len(items), "responses": sum(map(len, rows)), "distinct": sum(map(len, items)), **truncation}


def read_rewards(folder: Path) -> Iterator[tuple[str, float, Floats]]:
    """Yield per prompt its id and the rewards of its target and its candidates, in the candidates' order."""
    with pq.ParquetFile(folder / FILE) as file:
        for batch in file.iter_batches(1024):
            for row in batch.to_pylist():
                yield row["id"], row["target"], np.array(row["candidates"], dtype=np.float32)


def _table(prompts: Sequence[Sequence[Response]], rewards: Floats, counts: Counts) -> pa.Table:
    ends = np.cumsum([len(prompt) for prompt in prompts])
    offsets = pa.array([0, *ends], pa.int32())
    columns = {"rewards": pa.array(rewards), "unread": pa.array(counts.tolist(), pa.list_(pa.int64()))}
    return pa.table({name: pa.ListArray.from_arrays(offsets, values) for name, values in columns.items()})


def _parts(items: Sequence[list[Response]], size: int) -> list[list[list[Response]]]:
    """Split consecutive prompts into parts of about `size` responses."""
    parts: list[list[list[Response]]] = []
    weight = size
    for item in items:
        if weight >= size:
            parts.append([])
            weight = 0
        parts[-1].append(item)
        weight += len(item)
    return parts


def _digest(prompts: Sequence[Sequence[Response]]) -> str:
    digest = hashlib.sha256()
    for prompt in prompts:
        for dialogue, text in prompt:
            digest.update(repr((list(dialogue), text)).encode())
    return digest.hexdigest()[:20]


class CandidateScorer(Protocol):
    """Score the candidates of one prompt after another, in the candidates' order."""

    def __call__(self, example: Example, texts: Sequence[str], rows: Sequence[int]) -> tuple[Floats, float]:
        """Return the scores of the texts at `rows`, and the lowest score that is as good as the target."""
        ...

    def target(self, example: Example) -> float:
        """Return the score of the target. The example must be the one whose candidates were scored last."""
        ...


@dataclass(frozen=True)
class VerifierScorer:
    """Score by the verifier. A candidate is as good as the target if it is entirely right (score 1)."""

    verifier: Verifier

    def __call__(self, example: Example, texts: Sequence[str], rows: Sequence[int]) -> tuple[Floats, float]:
        return np.array([self.verifier.score(example, texts[i]) for i in rows], dtype=np.float32), 1.0

    def target(self, example: Example) -> float:
        return float(self.verifier.score(example, example.target))


class RewardScorer:
    """Score by stored rewards. A candidate is as good as the target if its reward is at least the target's."""

    def __init__(self, folder: Path) -> None:
        self._rewards = read_rewards(folder)
        self._last = ("", nan)

    def __call__(self, example: Example, texts: Sequence[str], rows: Sequence[int]) -> tuple[Floats, float]:
        name, target, candidates = next(self._rewards)
        if (name, len(candidates)) != (example.id, len(texts)):
            raise UserError(
                f"the stored rewards belong to other candidates than those of {example.id}. "
                "Recompute them with recompute=[score]."
            )
        target = target if example.has_target else nan  # the stored reward is that of an empty answer
        self._last = (name, target)
        return candidates[list(rows)], target

    def target(self, example: Example) -> float:
        name, target = self._last
        assert name == example.id, f"{name} was scored last"
        return target
