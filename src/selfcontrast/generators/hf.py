"""The backend that runs in this process, with transformers."""

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from selfcontrast.constrained import Count, check_numbers
from selfcontrast.data.candidates import Candidate, Decoding, Request
from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError
from selfcontrast.generators.backend import Sampler
from selfcontrast.models.loading import DTYPES, load_model, load_tokenizer
from selfcontrast.store import NOT_IN_KEY

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HF:
    """Batches of at most `batch_size` responses; what is drawn does not depend on the batch."""

    follows_model: ClassVar[bool] = True
    has_log_probs: ClassVar[bool] = True

    dtype: str
    batch_size: Count = field(metadata=NOT_IN_KEY)

    def __post_init__(self) -> None:
        check_numbers(self, "backend")
        if self.dtype not in DTYPES:
            raise UserError(f"backend.dtype={self.dtype}: one of {', '.join(DTYPES)}")

    def check(self) -> None: ...

    @contextmanager
    def open(self, model: Path, device: str) -> Iterator[Sampler]:
        from selfcontrast.generators.sampling import sample

        tokenizer = load_tokenizer(model)
        ends = Renderer(tokenizer).end_ids
        policy = load_model(model, self.dtype).to(device).eval()

        def draw(requests: Sequence[Request], samples: range, decoding: Decoding, seed: int) -> list[Candidate]:
            return sample(policy, tokenizer, requests, decoding, seed, ends, samples)

        yield Fitting(self.batch_size, draw)


Draw = Callable[[Sequence[Request], range, Decoding, int], list[Candidate]]
"""These samples of each request, for (requests, samples, decoding, seed)."""


class Fitting:
    """Draws in batches of at most `batch_size` responses; where memory runs out, halves them for good and goes on."""

    def __init__(self, batch_size: int, draw: Draw) -> None:
        self.batch_size = batch_size
        self.draw = draw

    def __call__(self, requests: Sequence[Request], decoding: Decoding, seed: int) -> list[Candidate]:
        found: list[Candidate] = []
        start = 0
        while start < len(requests):
            batch = requests[start : start + max(1, self.batch_size // decoding.samples)]
            # A prompt whose samples do not fit together is computed once for each part of them.
            parts = [
                range(decoding.samples)[i : i + self.batch_size] for i in range(0, decoding.samples, self.batch_size)
            ]
            drawn = self._try(batch, parts if len(batch) == 1 else parts[:1], decoding, seed)
            if drawn is not None:
                found += drawn
                start += len(batch)
        return found

    def _try(
        self, batch: Sequence[Request], parts: Sequence[range], decoding: Decoding, seed: int
    ) -> list[Candidate] | None:
        """The batch's candidates; None, and fewer rows from now on, where memory runs out."""
        try:
            return [candidate for samples in parts for candidate in self.draw(batch, samples, decoding, seed)]
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            reason = str(error).strip().partition("\n")[0]
        # Here the error is gone, and with it the frames that still held the batch.
        tried = len(batch) * len(parts[0])
        if tried == 1:
            raise UserError(f"memory runs out with a single response ({reason}): lower max_new_tokens or max_length")
        self.batch_size = tried // 2
        log.warning("memory ran out with %d responses at once: going on with %d (%s)", tried, self.batch_size, reason)
        _free()
        return None


def _out_of_memory(error: Exception) -> bool:
    """CUDA's has a type of its own; the CPU's and others' are known by their words."""
    import torch

    told = str(error).lower()
    words = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(w in told for w in words)


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
