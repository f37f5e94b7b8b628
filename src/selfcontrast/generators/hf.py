"""The generator that runs in this process, with transformers."""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from selfcontrast.data.candidates import Candidate, Decoding, Request, read_candidates, write_candidates
from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError
from selfcontrast.generators.sampling import sample
from selfcontrast.models.loading import PRECISIONS, load_model, load_tokenizer
from selfcontrast.store import NOT_IN_KEY

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HFGenerator:
    """Shards of prompts of similar length, each written as soon as it is sampled; a resumed run skips those."""

    precision: str
    rows: int = field(metadata=NOT_IN_KEY)
    shard: int = field(metadata=NOT_IN_KEY)

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UserError(f"generator.engine.precision={self.precision}: one of {', '.join(PRECISIONS)}")
        if min(self.rows, self.shard) < 1:
            raise UserError("generator.engine.rows and generator.engine.shard: at least 1")

    def generate(
        self,
        model: Path,
        requests: Sequence[Request],
        decoding: Decoding,
        seed: int,
        device: str,
        shards: Path,
        label: str,
    ) -> dict[str, list[Candidate]]:
        """Per request id its N candidates.

        Args:
            model: a policy folder.
            requests: none of them so long that it leaves no room for a response.
            shards: a folder for finished shards, which a resumed call finds again.
            label: the progress bar's name.
        """
        shards.mkdir(parents=True, exist_ok=True)
        by_length = sorted(requests, key=lambda request: (len(request.prompt), request.id))
        parts = [by_length[i : i + self.shard] for i in range(0, len(by_length), self.shard)]
        files = [shards / f"{_digest(part)}.parquet" for part in parts]
        recalled = sum(len(part) for part, file in zip(parts, files, strict=True) if file.exists())
        tokenizer = load_tokenizer(model)
        ends = Renderer(tokenizer).end_ids
        policy = None
        found: dict[str, list[Candidate]] = defaultdict(list)
        with tqdm(
            total=len(requests) * decoding.samples,
            initial=recalled * decoding.samples,  # in no rate: nothing was computed for them
            desc=label,
            unit="response",
            disable=None,
        ) as bar:
            for part, file in zip(parts, files, strict=True):
                if file.exists():
                    candidates = read_candidates(file)
                else:
                    policy = policy or load_model(model, self.precision).to(device).eval()
                    batches = _batches(part, max(1, self.rows // decoding.samples))
                    candidates = [c for b in batches for c in sample(policy, tokenizer, b, decoding, seed, ends)]
                    write_candidates(file, candidates)
                    bar.update(len(part) * decoding.samples)
                for candidate in candidates:
                    found[candidate.id].append(candidate)
        return {request.id: found[request.id] for request in requests}


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


def _batches(requests: Sequence[Request], size: int) -> list[Sequence[Request]]:
    return [requests[i : i + size] for i in range(0, len(requests), size)]


def _digest(requests: Sequence[Request]) -> str:
    """A shard's name: what it holds, so that another shard size never takes one for another."""
    return hashlib.sha256("\0".join(request.id for request in requests).encode()).hexdigest()[:20]
