"""Use the data's own rejected answers as candidates. DPO with one of them per prompt is standard DPO (DPO_std)."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfcontrast.data.example import Example
from selfcontrast.engines.work import Engine
from selfcontrast.errors import UserError
from selfcontrast.generators.generate import choose
from selfcontrast.generators.responses import ExistingResponses, write_responses

log = logging.getLogger(__name__)

_MAX_SAMPLES = "_max_samples"  # an attribute that is no field, because it is a fact of the data, not a setting


@dataclass(frozen=True)
class Pairs(ExistingResponses):
    """The rejected answers of each training prompt. Prompts that have none are not used, and `check` logs how many."""

    @property
    def samples(self) -> int:
        """The maximum number of rejected answers per prompt; 1 until `check` has counted them."""
        return int(vars(self).get(_MAX_SAMPLES, 1))

    def check(self, examples: Sequence[Example]) -> None:
        without_rejected = sum(not example.rejected for example in examples)
        if without_rejected == len(examples):
            raise UserError(
                "generator=pairs: no training row of this data has a rejected answer. Use other data (conf/data)."
            )
        vars(self)[_MAX_SAMPLES] = max(len(example.all_rejected) for example in examples)
        if without_rejected:
            log.warning(
                "%d of %d training prompts have no rejected answer and are not used", without_rejected, len(examples)
            )

    def generate(
        self, folder: Path, model: Path, examples: Sequence[Example], engine: Engine, device: str
    ) -> dict[str, Any]:
        """Write `folder/candidates.parquet`, with the prompts in the order of `examples`."""
        chosen = [example for example in choose(examples, self.prompts, self.seed) if example.rejected]
        return write_responses(folder, model, chosen, {e.id: e.all_rejected for e in chosen}, self.max_length)
