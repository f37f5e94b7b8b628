"""What draws responses: the interface that every backend gives, and its work in shards."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import pyarrow.compute as pc

from selfcontrast.data.candidates import FAILED, Candidate, Decoding, Request, candidates_of, candidates_table
from selfcontrast.engines.work import Engine, Shard, Worker, cut, read_table, unfinished, write_table
from selfcontrast.errors import UserError

log = logging.getLogger(__name__)

Sampler = Callable[[Sequence[Request], Decoding, int], list[Candidate]]
"""For (requests, decoding, seed): each request's N candidates, or one that says why it failed, in their order."""


class Backend(Protocol):
    """A way of drawing responses from a policy folder. It can be pickled, and holds no model itself.

    Attributes:
        follows_model: that it draws from whichever folder it is given, and not from one that somebody else has loaded.
        has_log_probs: that it can know the log-probabilities of what it draws.
    """

    follows_model: ClassVar[bool]

    @property
    def has_log_probs(self) -> bool: ...

    def check(self) -> None:
        """Raises `UserError` for what can be known before any compute."""

    def open(self, model: Path, device: str) -> AbstractContextManager[Sampler]:
        """Loads the model, and frees it in the end."""


@dataclass(frozen=True)
class Sampling:
    """The task of drawing candidates. What a request is answered with depends on it alone, not on its shard."""

    backend: Backend
    model: Path
    decoding: Decoding
    seed: int

    @contextmanager
    def open(self, device: str) -> Iterator[Worker]:
        with self.backend.open(self.model, device) as sample:
            yield lambda requests: candidates_table(sample(requests, self.decoding, self.seed))


@dataclass(frozen=True)
class Responder:
    """A backend at work on an engine: what stages ask for responses."""

    backend: Backend
    engine: Engine
    device: str

    def sample(
        self, model: Path, requests: Sequence[Request], decoding: Decoding, seed: int, folder: Path, label: str
    ) -> list[Path]:
        """Files of candidates, prompts of similar length together; those that `folder` holds already are kept.

        What failed for good is in the files as such, and is asked for again where they are found by a later run.

        Args:
            model: a policy folder.
            requests: none of them so long that it leaves no room for a response.
            label: the progress bar's name.
        """
        by_length = sorted(requests, key=lambda request: (len(request.prompt), request.id))
        shards = cut(by_length, self.engine.prompts_per_shard, folder, lambda request: request.id, decoding.samples)
        task = Sampling(self.backend, model, decoding, seed)
        self._retry(task, shards, label)
        todo, begun = unfinished(shards), time.monotonic()
        self.engine.run(task, shards, self.device, label, "response")
        if todo:
            tokens, seconds = sum(map(_tokens, todo)), time.monotonic() - begun
            log.info("%s: %d tokens in %.1f s: %.0f tokens/s", label, tokens, seconds, tokens / seconds)
        return [shard.file for shard in shards]

    def answers(
        self, model: Path, requests: Sequence[Request], decoding: Decoding, seed: int, folder: Path, label: str
    ) -> dict[str, list[Candidate]]:
        """The same, read back: per request id its candidates, in the order of the requests.

        Raises:
            UserError: where one failed for good.
        """
        found: dict[str, list[Candidate]] = {request.id: [] for request in requests}
        for file in self.sample(model, requests, decoding, seed, folder, label):
            for candidate in candidates_of(read_table(file)):
                found[candidate.id].append(candidate)
        if failed := [c for candidates in found.values() for c in candidates if c.failed]:
            raise UserError(f"{label}: {len(failed)} of {len(found)} prompts got no response ({failed[0].text})")
        return found

    def _retry(self, task: Sampling, shards: Sequence[Shard], label: str) -> None:
        """Asks again for what failed in the shards that an earlier run left, and fills it in."""
        missing = {shard.file for shard in unfinished(shards)}
        again = [(shard, _failed(shard)) for shard in shards if shard.file not in missing]
        gaps = [
            (shard, Shard(shard.file.parent / "again" / shard.file.name, failed, len(failed) * task.decoding.samples))
            for shard, failed in again
            if failed
        ]
        for _, gap in gaps:
            gap.file.unlink(missing_ok=True)  # of a run that ended in the midst of this
        self.engine.run(task, [gap for _, gap in gaps], self.device, f"{label} again", "response")
        for shard, gap in gaps:
            place = {request.id: i for i, request in enumerate(shard.items)}
            found = [c for c in candidates_of(read_table(shard.file)) if not c.failed]
            found += candidates_of(read_table(gap.file))
            write_table(shard.file, candidates_table(sorted(found, key=lambda c: (place[c.id], c.sample))))
            gap.file.unlink()


def _tokens(shard: Shard) -> int:
    """Tokens of a finished shard's responses."""
    lengths = pc.list_value_length(read_table(shard.file, columns=["token_ids"])["token_ids"])
    return int(pc.sum(lengths).as_py() or 0)


def _failed(shard: Shard) -> list[Request]:
    table = read_table(shard.file, columns=["id", "finish_reason"])
    names = set(table.filter(pc.equal(table["finish_reason"], FAILED))["id"].to_pylist())
    return [request for request in shard.items if request.id in names]


def with_room(requests: Iterable[Request], decoding: Decoding) -> list[Request]:
    """The requests whose prompt leaves room for at least one token of a response; the others are counted and said."""
    every = list(requests)
    kept = [request for request in every if len(request.prompt) < decoding.max_length]
    if dropped := len(every) - len(kept):
        log.warning(
            "%d of %d prompts fill all %d tokens and leave no room for a response: left out",
            dropped,
            len(every),
            decoding.max_length,
        )
    return kept
