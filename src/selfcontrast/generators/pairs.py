"""The data's own rejected answers as candidates: with one of each prompt, DPO is the standard one (DPO_std)."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from selfcontrast.constrained import Count, Seed, check_numbers
from selfcontrast.data.example import Example
from selfcontrast.engines.work import Engine
from selfcontrast.errors import UserError
from selfcontrast.generators.given import write_given
from selfcontrast.generators.stage import choose

log = logging.getLogger(__name__)

_MOST = "_most"  # not a field: it is the data's, and no setting


@dataclass(frozen=True)
class Pairs:
    """Of each training prompt all its rejected answers; prompts without one are not used, and are counted.

    Attributes:
        prompts: how many training prompts, drawn with `seed` as sampling draws them; None for all.
        max_length: tokens of prompt and answer; longer ones are left out and counted.
    """

    follows_model: ClassVar[bool] = False
    tells_log_probs: ClassVar[bool] = False

    prompts: Count | None
    max_length: Count
    seed: Seed

    def __post_init__(self) -> None:
        check_numbers(self, "generator")

    @property
    def samples(self) -> int:
        """The most rejected answers of a prompt, once `check` has seen the examples; 1 before."""
        return int(vars(self).get(_MOST, 1))

    def check(self, examples: Sequence[Example]) -> None:
        bare = sum(not example.rejected for example in examples)
        if bare == len(examples):
            raise UserError("generator=pairs: no training row of this data has a rejected answer; see conf/data")
        vars(self)[_MOST] = max(len(example.every_rejected) for example in examples)
        if bare:
            log.warning("%d of %d training prompts have no rejected answer: not used", bare, len(examples))

    def generate(
        self, folder: Path, model: Path, examples: Sequence[Example], engine: Engine, device: str
    ) -> dict[str, Any]:
        """Writes `folder/candidates.parquet`, the prompts in their own order."""
        own = [example for example in choose(examples, self.prompts, self.seed) if example.rejected]
        return write_given(folder, model, own, {e.id: e.every_rejected for e in own}, self.max_length)
