"""Define the interface of sampling backends, and sample with a backend in shards."""

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
"""(requests, decoding, seed) -> each request's N candidates or its one failed candidate, in the requests' order."""


class Backend(Protocol):
    """A way of sampling from a policy folder. It can be pickled and holds no model.

    Attributes:
        follows_model: True if it samples from the given folder, not from a model that another process has loaded.
        has_log_probs: True if it can return log-probabilities of its samples.
    """

    follows_model: ClassVar[bool]

    @property
    def has_log_probs(self) -> bool: ...

    def check(self) -> None:
        """Raise `UserError` for errors that can be found before any compute."""

    def open(self, model: Path, device: str) -> AbstractContextManager[Sampler]:
        """Load the model, and free it at the end."""


@dataclass(frozen=True)
class SamplingTask:
    """The task of sampling candidates. A candidate depends on its request alone, not on the shard."""

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
    """Sample responses for stages, with a backend on an engine."""

    backend: Backend
    engine: Engine
    device: str

    def sample(
        self, model: Path, requests: Sequence[Request], decoding: Decoding, seed: int, folder: Path, label: str
    ) -> list[Path]:
        """Sample candidates in shards of prompts of similar length. Return the shards' files; reuse those in `folder`.

        Permanently failed requests are stored as failures. A later run retries them.

        Args:
            model: a policy folder.
            requests: each must leave room for a response.
            label: the progress bar's name.
        """
        by_length = sorted(requests, key=lambda request: (len(request.prompt), request.id))
        shards = cut(by_length, self.engine.prompts_per_shard, folder, lambda request: request.id, decoding.samples)
        task = SamplingTask(self.backend, model, decoding, seed)
        self._retry(task, shards, label)
        missing, start = unfinished(shards), time.monotonic()
        self.engine.run(task, shards, self.device, label, "response")
        if missing:
            tokens, seconds = sum(map(_tokens, missing)), time.monotonic() - start
            log.info("%s: %d tokens in %.1f s: %.0f tokens/s", label, tokens, seconds, tokens / seconds)
        return [shard.file for shard in shards]

    def answers(
        self, model: Path, requests: Sequence[Request], decoding: Decoding, seed: int, folder: Path, label: str
    ) -> dict[str, list[Candidate]]:
        """Sample as `sample` does. Return the candidates by request id, in the order of the requests.

        Raises:
            UserError: if a request failed permanently.
        """
        by_id: dict[str, list[Candidate]] = {request.id: [] for request in requests}
        for file in self.sample(model, requests, decoding, seed, folder, label):
            for candidate in candidates_of(read_table(file)):
                by_id[candidate.id].append(candidate)
        if failed := [c for candidates in by_id.values() for c in candidates if c.failed]:
            raise UserError(
                f"{label}: {len(failed)} of {len(by_id)} prompts got no response ({failed[0].text}). Remove the cause "
                "and run the same command again, which retries only these prompts."
            )
        return by_id

    def _retry(self, task: SamplingTask, shards: Sequence[Shard], label: str) -> None:
        """Retry the failed requests in an earlier run's shards, and insert their responses."""
        missing = {shard.file for shard in unfinished(shards)}
        finished = [(shard, _failed(shard)) for shard in shards if shard.file not in missing]
        retries = [
            (shard, Shard(shard.file.parent / "again" / shard.file.name, failed, len(failed) * task.decoding.samples))
            for shard, failed in finished
            if failed
        ]
        for _, retry in retries:
            retry.file.unlink(missing_ok=True)  # left by a run that ended during a retry
        self.engine.run(task, [retry for _, retry in retries], self.device, f"{label} again", "response")
        for shard, retry in retries:
            order = {request.id: i for i, request in enumerate(shard.items)}
            candidates = [c for c in candidates_of(read_table(shard.file)) if not c.failed]
            candidates += candidates_of(read_table(retry.file))
            write_table(shard.file, candidates_table(sorted(candidates, key=lambda c: (order[c.id], c.sample))))
            retry.file.unlink()


def _tokens(shard: Shard) -> int:
    """Return the number of tokens in a finished shard's responses."""
    lengths = pc.list_value_length(read_table(shard.file, columns=["token_ids"])["token_ids"])
    return int(pc.sum(lengths).as_py() or 0)


def _failed(shard: Shard) -> list[Request]:
    table = read_table(shard.file, columns=["id", "finish_reason"])
    names = set(table.filter(pc.equal(table["finish_reason"], FAILED))["id"].to_pylist())
    return [request for request in shard.items if request.id in names]


def with_room(requests: Iterable[Request], decoding: Decoding) -> list[Request]:
    """Return the requests whose prompt leaves room for at least one response token. Log the number of the others."""
    all_requests = list(requests)
    kept = [request for request in all_requests if len(request.prompt) < decoding.max_length]
    if dropped := len(all_requests) - len(kept):
        log.warning(
            "dropped %d of %d prompts, which leave no room for a response in max_length=%d tokens",
            dropped,
            len(all_requests),
            decoding.max_length,
        )
    return kept
