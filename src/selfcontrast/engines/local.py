"""The engine that runs in this process, one shard after another."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tqdm import tqdm

from selfcontrast.engines.work import Shard, Task, write_table
from selfcontrast.errors import UserError
from selfcontrast.store import NOT_IN_KEY


@dataclass(frozen=True)
class Local:
    """One worker, opened when the first shard asks for it."""

    prompts_per_shard: int = field(metadata=NOT_IN_KEY)
    texts_per_shard: int = field(metadata=NOT_IN_KEY)

    def __post_init__(self) -> None:
        for name in ("prompts_per_shard", "texts_per_shard"):
            if getattr(self, name) < 1:
                raise UserError(f"engine.{name}={getattr(self, name)}: at least 1")

    def check(self) -> None: ...

    def run(self, task: Task, shards: Sequence[Shard], device: str, label: str, unit: str) -> None:
        todo = [shard for shard in shards if not shard.file.exists()]
        if not todo:
            return
        every, left = sum(s.weight for s in shards), sum(s.weight for s in todo)
        # What an earlier attempt did is in the bar from the start, and in no rate.
        with (
            task.open(device) as work,
            tqdm(total=every, initial=every - left, desc=label, unit=unit, disable=None) as bar,
        ):
            for shard in todo:
                write_table(shard.file, work(shard.items))
                bar.update(shard.weight)
