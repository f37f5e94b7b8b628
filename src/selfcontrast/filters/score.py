"""Stage score: the reward of every target and candidate, stored, so that another selector does not ask for it again."""

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
from selfcontrast.filters.select import Floats
from selfcontrast.models.reward import Response, RewardModel
from selfcontrast.models.unread import Counts, report_unread, unread
from selfcontrast.store import RESUME

VERSION = 3
FILE = "rewards.parquet"
SCHEMA = pa.schema([("id", pa.string()), ("target", pa.float32()), ("candidates", pa.list_(pa.float32()))])


@dataclass(frozen=True)
class Rewarding:
    """The task of scoring responses: of each prompt its distinct ones, the target among them."""

    model: RewardModel

    @contextmanager
    def open(self, device: str) -> Iterator[Worker]:
        with self.model.open(device) as reward:

            def work(prompts: Sequence[Sequence[Response]]) -> pa.Table:
                answers = [answer for prompt in prompts for answer in prompt]
                return _table(prompts, reward(answers), unread(reward, answers))

            yield work


def score(
    folder: Path,
    model: RewardModel,
    engine: Engine,
    prompts: Iterable[tuple[Example, Sequence[str]]],
    device: str,
) -> dict[str, Any]:
    """Writes the rewards of every prompt's target and candidates to `folder`, in the candidates' order.

    Args:
        prompts: each with its candidates' texts.
    """
    items: list[list[Response]] = []
    names: list[str] = []
    rows: list[list[int]] = []  # per prompt the place of target and candidates among its distinct responses
    for example, texts in prompts:
        names.append(example.id)
        place: dict[str, int] = {}
        rows.append([place.setdefault(text, len(place)) for text in (example.target, *texts)])
        items.append([(example.prompt, text) for text in place])
    parts = _parts(items, engine.texts_per_shard)
    shards = [Shard(folder / RESUME / f"{_digest(p)}.parquet", p, sum(map(len, p))) for p in parts]
    engine.run(Rewarding(model), shards, device, "score", "response")
    place_of, name_of = iter(rows), iter(names)
    counts: list[list[int]] = []
    with pq.ParquetWriter(folder / FILE, SCHEMA) as writer:
        for shard in shards:
            table = read_table(shard.file)
            found = table["rewards"].to_pylist()
            counts += [row for prompt in table["unread"].to_pylist() for row in prompt]
            every = [np.array(rewards, dtype=np.float32)[next(place_of)] for rewards in found]
            names_here = list(islice(name_of, len(every)))
            columns = {"id": names_here, "target": [r[0] for r in every], "candidates": [r[1:] for r in every]}
            writer.write_table(pa.table(columns, schema=SCHEMA))
    told = report_unread("score", np.array(counts).reshape(-1, 2), "tokens", "raise filter.reward_model.max_tokens")
    return {"prompts": len(items), "responses": sum(map(len, rows)), "distinct": sum(map(len, items)), **told}


def read_rewards(folder: Path) -> Iterator[tuple[str, float, Floats]]:
    """Per prompt its id and the rewards of its target and its candidates, in the candidates' order."""
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
    """Consecutive prompts together, about `size` responses in each part."""
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


class Scorer(Protocol):
    """Scores candidates of one prompt after another, in the candidates' order."""

    def __call__(self, example: Example, texts: Sequence[str], rows: Sequence[int]) -> tuple[Floats, float]:
        """Scores of the texts at `rows`, and the score from which on a candidate is as good as the target."""
        ...

    def target(self, example: Example) -> float:
        """The score of the target of the example whose candidates were scored last."""
        ...


@dataclass(frozen=True)
class Verified:
    """By the verifier: as good as the target is what is right throughout."""

    verifier: Verifier

    def __call__(self, example: Example, texts: Sequence[str], rows: Sequence[int]) -> tuple[Floats, float]:
        return np.array([self.verifier.score(example, texts[i]) for i in rows], dtype=np.float32), 1.0

    def target(self, example: Example) -> float:
        return float(self.verifier.score(example, example.target))


class Rewarded:
    """By stored rewards: as good as the target is what its reward says."""

    def __init__(self, folder: Path) -> None:
        self._rewards = read_rewards(folder)
        self._last = ("", nan)

    def __call__(self, example: Example, texts: Sequence[str], rows: Sequence[int]) -> tuple[Floats, float]:
        name, target, candidates = next(self._rewards)
        if (name, len(candidates)) != (example.id, len(texts)):
            raise UserError(f"the stored rewards are of other candidates than {example.id}'s; recompute=[score]")
        target = target if example.has_target else nan  # what is stored is an empty answer's
        self._last = (name, target)
        return candidates[list(rows)], target

    def target(self, example: Example) -> float:
        name, target = self._last
        assert name == example.id, f"{name} was scored last"
        return target
