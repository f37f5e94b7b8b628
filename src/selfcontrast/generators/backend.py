"""What draws responses: the interface that every backend gives, and its work in shards."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from selfcontrast.data.candidates import Candidate, Decoding, Request, candidates_table, read_candidates
from selfcontrast.engines.work import Engine, Shard, Worker

log = logging.getLogger(__name__)

Sampler = Callable[[Sequence[Request], Decoding, int], list[Candidate]]
"""All N candidates of each request, in the order of the requests, for (requests, decoding, seed)."""


class Backend(Protocol):
    """A way of drawing responses from a policy folder. It can be pickled, and holds no model itself."""

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

        Args:
            model: a policy folder.
            requests: none of them so long that it leaves no room for a response.
            label: the progress bar's name.
        """
        by_length = sorted(requests, key=lambda request: (len(request.prompt), request.id))
        size = self.engine.prompts_per_shard
        parts = [by_length[i : i + size] for i in range(0, len(by_length), size)]
        shards = [Shard(folder / f"{_digest(p)}.parquet", p, len(p) * decoding.samples) for p in parts]
        self.engine.run(Sampling(self.backend, model, decoding, seed), shards, self.device, label, "response")
        return [shard.file for shard in shards]

    def answers(
        self, model: Path, requests: Sequence[Request], decoding: Decoding, seed: int, folder: Path, label: str
    ) -> dict[str, list[Candidate]]:
        """The same, read back: per request id its candidates, in the order of the requests."""
        found: dict[str, list[Candidate]] = {request.id: [] for request in requests}
        for file in self.sample(model, requests, decoding, seed, folder, label):
            for candidate in read_candidates(file):
                found[candidate.id].append(candidate)
        return found


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


def _digest(requests: Sequence[Request]) -> str:
    """A shard's name: what it holds, so that another shard size never takes one for another."""
    return hashlib.sha256("\0".join(request.id for request in requests).encode()).hexdigest()[:20]
