"""The groups of every optimiser step, in micro-batches that fit into memory.

Every step has `batch_size` groups, for every K; the last step of an epoch may have fewer. The groups are a function of
(seed, epoch, step) alone, so a resumed run needs only the number of its next step. Every rank computes the whole plan
and takes its own part. Groups go longest first, each to the rank with the fewest tokens. All ranks have equally many
micro-batches, because all must take part in the collective operations of a micro-batch.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch.utils.data import Dataset, Sampler

from selfcontrast.models.packing import Group, PackedGroups, pack, sharing_bound

MIN_SHARING_BOUND = 1.05  # below this, the second attention call costs as much as the saved tokens


@dataclass(frozen=True)
class MicroBatch:
    """Groups computed together. `counts` is False for a filler, since all ranks need equally many micro-batches."""

    packed: PackedGroups
    counts: bool


@dataclass(frozen=True)
class Step:
    """One rank's part of an optimiser step. `groups` and `target_tokens` are totals over all ranks."""

    microbatches: list[MicroBatch]
    groups: int
    target_tokens: int


class Steps(Dataset[Step]):
    """All optimiser steps of a training run, in order: `len()` of them, each a `Step`.

    Args:
        budget: packed tokens to train on, over as many epochs as needed; None for `epochs` epochs.
        ranks: this process's rank, and the number of ranks.
        may_share: True if the model computes a shared prompt exactly.
    """

    def __init__(  # noqa: PLR0913
        self,
        groups: Sequence[Group],
        batch_size: int,
        epochs: int,
        max_tokens_per_microbatch: int,
        seed: int,
        budget: int | None = None,
        ranks: tuple[int, int] = (0, 1),
        may_share: bool = True,
    ) -> None:
        self.groups = groups
        self.batch_size = batch_size
        self.max_tokens_per_microbatch = max_tokens_per_microbatch
        self.seed = seed
        self.rank, self.ranks = ranks
        self.bound = sharing_bound(groups)
        self.sharing = may_share and self.bound >= MIN_SHARING_BOUND
        self.per_epoch = -(-len(groups) // batch_size)
        self.count = epochs * self.per_epoch if budget is None else self._steps_for_budget(budget)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, step: int) -> Step:
        chosen = [self.groups[i] for i in self.indices(step)]
        return Step(
            microbatches=rank_microbatches(chosen, self.max_tokens_per_microbatch, self.rank, self.ranks, self.sharing),
            groups=len(chosen),
            target_tokens=sum(len(group.target) for group in chosen),
        )

    def indices(self, step: int) -> list[int]:
        """Return the indices of a step's groups. The last step of an epoch may have fewer."""
        epoch, position = divmod(step, self.per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.groups))
        begin = position * self.batch_size
        return [int(i) for i in order[begin : begin + self.batch_size]]

    @property
    def tokens(self) -> int:
        """Packed tokens of all steps."""
        epochs, remaining = divmod(self.count, self.per_epoch)
        return epochs * self._tokens_per_epoch + sum(map(self._tokens, range(self.count - remaining, self.count)))

    @cached_property
    def _tokens_per_epoch(self) -> int:
        return sum(map(length, self.groups))

    def _tokens(self, step: int) -> int:
        return sum(length(self.groups[i]) for i in self.indices(step))

    def _steps_for_budget(self, tokens: int) -> int:
        """Return the smallest number of steps that have at least this many tokens."""
        epochs, remaining = divmod(tokens, self._tokens_per_epoch)
        steps = epochs * self.per_epoch
        while remaining > 0:
            remaining -= self._tokens(steps)
            steps += 1
        return steps


class RemainingSteps(Sampler[int]):
    """The steps from `start` on. `len()` is the number of all steps, because Lightning counts batches by it."""

    def __init__(self, steps: int, start: int) -> None:
        self.steps = steps
        self.start = start

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.steps))

    def __len__(self) -> int:
        return self.steps


def length(group: Group) -> int:
    """Return the number of tokens of a group: the prompt once, and each response."""
    return len(group.prompt) + len(group.target) + sum(len(negative) for negative in group.negatives)


def balance_by_tokens(groups: Sequence[Group], ranks: int) -> list[list[Group]]:
    """Split groups among ranks with nearly equal token counts: longest first, each to the rank with the fewest."""
    per_rank: list[list[Group]] = [[] for _ in range(ranks)]
    tokens_and_rank = [(0, rank) for rank in range(ranks)]  # a heap
    for group in sorted(groups, key=length, reverse=True):
        tokens, rank = heapq.heappop(tokens_and_rank)
        per_rank[rank].append(group)
        heapq.heappush(tokens_and_rank, (tokens + length(group), rank))
    return per_rank


def rank_microbatches(
    groups: Sequence[Group], max_tokens_per_microbatch: int, rank: int, ranks: int, sharing: bool = True
) -> list[MicroBatch]:
    """Return one rank's micro-batches, with fillers up to the largest number of micro-batches of any rank."""
    per_rank = [
        split_into_microbatches(part, max_tokens_per_microbatch, sharing) for part in balance_by_tokens(groups, ranks)
    ]
    count = max(len(microbatches) for microbatches in per_rank)
    microbatches = [as_microbatch(batch, True, sharing) for batch in per_rank[rank]]
    filler = [min(groups, key=length)]
    return microbatches + [as_microbatch(filler, False, sharing)] * (count - len(microbatches))


def split_into_microbatches(
    groups: Sequence[Group], max_tokens_per_microbatch: int, sharing: bool = True
) -> list[list[Group]]:
    """Split groups into micro-batches of similar lengths. A group above the limit is alone in its micro-batch."""
    microbatches: list[list[Group]] = []
    tokens = max_tokens_per_microbatch
    for group in sorted(groups, key=length, reverse=True):
        size = length(group) + (0 if sharing else len(group.prompt) * len(group.negatives))
        if tokens + size > max_tokens_per_microbatch:
            microbatches.append([])
            tokens = 0
        microbatches[-1].append(group)
        tokens += size
    return microbatches


def as_microbatch(groups: list[Group], counts: bool, sharing: bool = True) -> MicroBatch:
    return MicroBatch(pack(groups, sharing), counts)
