"""The backend that samples in this process, with transformers."""

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
from selfcontrast.progress import advance_unsaved, current
from selfcontrast.store import NOT_IN_KEY

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HF:
    """Sample at most `batch_size` responses at a time. The samples do not depend on the batch."""

    follows_model: ClassVar[bool] = True
    has_log_probs: ClassVar[bool] = True

    dtype: str
    batch_size: Count = field(metadata=NOT_IN_KEY)

    def __post_init__(self) -> None:
        check_numbers(self, "backend")
        if self.dtype not in DTYPES:
            raise UserError(f"backend.dtype={self.dtype} must be one of {', '.join(DTYPES)}")

    def check(self) -> None: ...

    @contextmanager
    def open(self, model: Path, device: str) -> Iterator[Sampler]:
        from selfcontrast.generators.sampling import sample

        tokenizer = load_tokenizer(model)
        ends = Renderer(tokenizer).end_ids
        policy = load_model(model, self.dtype).to(device).eval()

        def draw(requests: Sequence[Request], samples: range, decoding: Decoding, seed: int) -> list[Candidate]:
            return sample(policy, tokenizer, requests, decoding, seed, ends, samples)

        yield OomBatcher(self.batch_size, draw)


Draw = Callable[[Sequence[Request], range, Decoding, int], list[Candidate]]
"""(requests, samples, decoding, seed) -> for each request, one candidate per number in `samples`."""


class OomBatcher:
    """Sample at most `batch_size` responses at once. If memory runs out, halve `batch_size` permanently and retry."""

    def __init__(self, batch_size: int, draw: Draw) -> None:
        self.batch_size = batch_size
        self.draw = draw

    def __call__(self, requests: Sequence[Request], decoding: Decoding, seed: int) -> list[Candidate]:
        candidates: list[Candidate] = []
        start = 0
        while start < len(requests):
            batch = requests[start : start + max(1, self.batch_size // decoding.samples)]
            # A prompt with more samples than `batch_size` is drawn in parts. Each part computes the prompt again.
            parts = [
                range(decoding.samples)[i : i + self.batch_size] for i in range(0, decoding.samples, self.batch_size)
            ]
            drawn = self._try(batch, parts if len(batch) == 1 else parts[:1], decoding, seed)
            if drawn is not None:
                candidates += drawn
                start += len(batch)
        return candidates

    def _try(
        self, batch: Sequence[Request], parts: Sequence[range], decoding: Decoding, seed: int
    ) -> list[Candidate] | None:
        """Return the batch's candidates. If memory runs out, lower `batch_size` and return None."""
        counter = current()
        unsaved = counter.unsaved if counter else 0
        try:
            return [candidate for samples in parts for candidate in self.draw(batch, samples, decoding, seed)]
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            reason = str(error).strip().partition("\n")[0]
        # Outside the handler the error is freed, and with it the frames that hold the batch.
        if counter:
            advance_unsaved(unsaved - counter.unsaved, "response")
        size = len(batch) * len(parts[0])
        if size == 1:
            raise UserError(f"out of memory with a single response ({reason}). Lower max_new_tokens or max_length.")
        self.batch_size = size // 2
        log.warning("out of memory with %d responses at once, retrying with %d (%s)", size, self.batch_size, reason)
        _free()
        return None


def _out_of_memory(error: Exception) -> bool:
    """Return whether memory ran out. CUDA has an error type for it; other devices are recognised by the message."""
    import torch

    message = str(error).lower()
    words = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(w in message for w in words)


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
