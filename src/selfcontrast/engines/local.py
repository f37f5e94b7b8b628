"""The engine that runs in this process, one shard after another."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from selfcontrast.constrained import Count, check_numbers
from selfcontrast.engines.work import Shard, Task, progress, unfinished, write_table
from selfcontrast.store import NOT_IN_KEY


@dataclass(frozen=True)
class Local:
    """One worker in this process, opened only if a shard is unfinished."""

    prompts_per_shard: Count = field(metadata=NOT_IN_KEY)
    texts_per_shard: Count = field(metadata=NOT_IN_KEY)

    def __post_init__(self) -> None:
        check_numbers(self, "engine")

    def check(self) -> None: ...

    def ready(self) -> AbstractContextManager[None]:
        return nullcontext()

    def run(self, task: Task, shards: Sequence[Shard], device: str, label: str, unit: str) -> None:
        missing = unfinished(shards)
        if not missing:
            return
        with task.open(device) as work, progress(shards, missing, label, unit) as advance:
            for shard in missing:
                write_table(shard.file, work(shard.items))
                advance(shard.weight)
