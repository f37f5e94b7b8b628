"""The run over its steps: exact resumption, exact accumulation, the optimiser's settings."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from selfcontrast.training.fit import StepData, fit, prepare
from selfcontrast.training.module import Record
from selfcontrast.training.modules import SupervisedFineTuning
from selfcontrast.training.recipe import Recipe
from selfcontrast.training.steps import Pass, Step
from tiny import gpt2, groups, hardware, recipe

SPEEDS = {"tokens_per_second", "prompts_per_second"}
TRAIN, VALIDATION = groups(10), groups(3, seed=1)


class Killed(SupervisedFineTuning):
    """Ends the process's training as an exception would, within one step: before, amid or after its update."""

    kill_at: tuple[str, int] = ("", -1)

    def training_step(self, step: Step, index: int) -> None:
        self._maybe("begin")
        super().training_step(step, index)
        self._maybe("end")

    def losses(self, part: Pass) -> Any:
        if self.trainer.validating:
            self._maybe("validation")
        found = super().losses(part)
        if self.trainer.training:
            self._maybe("forward")
        return found

    def _maybe(self, where: str) -> None:
        if (where, self.trainer.global_step) == self.kill_at:
            raise SystemExit(where)


def trained(
    folder: Path,
    how: Recipe,
    kill_at: tuple[str, int] | None = None,
    dropout: float = 0.1,
    **machine: Any,
) -> tuple[dict[str, Tensor], list[Record]]:
    """Weights and history (less speeds) after a run, which goes on from what lies in `folder`."""
    policy = gpt2(dropout)
    own = hardware(**machine)
    data = StepData(TRAIN, VALIDATION, how, own, seed=3)
    prepare(policy, TRAIN, own)
    module = Killed(policy, how, len(data.steps()), own.logits_chunk, lambda record: None)
    module.kill_at = kill_at or ("", -1)
    if kill_at:
        torch.manual_seed(7)
        with pytest.raises(SystemExit):
            fit(module, data, folder, "test")
    else:
        torch.manual_seed(7 if not (folder / "last.ckpt").exists() else 8)
        fit(module, data, folder, "test")
    history = [{k: v for k, v in record.items() if k not in SPEEDS} for record in module.history]
    return {name: value.clone() for name, value in policy.state_dict().items()}, history


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], list[Record]]:
    """Six steps, a validation after each second one, never interrupted."""
    return trained(tmp_path_factory.mktemp("whole"), recipe(validations=3))


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize(
    "kill_at",
    [("begin", 1), ("begin", 3), ("forward", 2), ("forward", 4), ("end", 4), ("end", 6), ("validation", 4)],
    ids=lambda at: f"{at[0]}{at[1]}",
)
def test_a_killed_run_ends_as_if_it_had_not_been(
    tmp_path: Path, whole: tuple[dict[str, Tensor], list[Record]], every: int, kill_at: tuple[str, int]
) -> None:
    trained(tmp_path, recipe(validations=3), kill_at, checkpoint_every=every)
    weights, history = trained(tmp_path, recipe(validations=3), checkpoint_every=every)
    assert history == whole[1]
    assert all(torch.equal(weights[name], value) for name, value in whole[0].items())
