"""The backend that runs in this process, with transformers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from selfcontrast.data.candidates import Candidate, Decoding, Request
from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError
from selfcontrast.generators.backend import Sampler
from selfcontrast.generators.sampling import sample
from selfcontrast.models.loading import PRECISIONS, load_model, load_tokenizer
from selfcontrast.store import NOT_IN_KEY


@dataclass(frozen=True)
class HF:
    """Batches of `rows` responses; what is drawn does not depend on the batch."""

    precision: str
    rows: int = field(metadata=NOT_IN_KEY)

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UserError(f"backend.precision={self.precision}: one of {', '.join(PRECISIONS)}")
        if self.rows < 1:
            raise UserError(f"backend.rows={self.rows}: at least 1")

    def check(self) -> None: ...

    @contextmanager
    def open(self, model: Path, device: str) -> Iterator[Sampler]:
        tokenizer = load_tokenizer(model)
        ends = Renderer(tokenizer).end_ids
        policy = load_model(model, self.precision).to(device).eval()

        def sampler(requests: Sequence[Request], decoding: Decoding, seed: int) -> list[Candidate]:
            size = max(1, self.rows // decoding.samples)
            batches = [requests[i : i + size] for i in range(0, len(requests), size)]
            return [c for batch in batches for c in sample(policy, tokenizer, batch, decoding, seed, ends)]

        yield sampler
