"""Several processes train one policy: how they resume, fail, and end when they are told to."""

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from selfcontrast.errors import UserError
from selfcontrast.training.fit import StepData, fit, prepare
from selfcontrast.training.module import Record
from selfcontrast.training.modules import SupervisedFineTuning
from selfcontrast.training.steps import MicroBatch
from tiny import gpt2, groups, hardware, optim

TRAIN = groups(8)
STEPS = 8
HOW = optim(epochs=STEPS // 2)
pytestmark = pytest.mark.filterwarnings("ignore")


class Waiting(SupervisedFineTuning):
    """Stands in its sixth step until this process has been told to end."""

    def losses(self, part: MicroBatch) -> Any:
        if self.trainer.global_step == 5:
            handler: Any = signal.getsignal(signal.SIGTERM)
            while handler.__self__.noted is None:
                time.sleep(0.01)
        return super().losses(part)


class Poisoned(SupervisedFineTuning):
    """From step 3 on the loss of one group is not a number."""

    def losses(self, part: MicroBatch) -> Any:
        loss, sums = super().losses(part)
        if self.trainer.global_step >= 3 and "g5" in part.packed.ids:
            bad = part.packed.ids.index("g5")
            loss = loss * torch.where(torch.arange(len(loss)) == bad, torch.nan, 1.0)
        return loss, sums


class Sharded(SupervisedFineTuning):
    """Stops with what is there of its parameters."""

    def losses(self, part: MicroBatch) -> Any:
        layer = self.policy.transformer.h[0].mlp.c_fc.weight
        assert isinstance(layer, DTensor)
        raise UserError(f"shard of {layer.to_local().numel()}")


def trained(
    folder: Path,
    report: Callable[[Record], None] = lambda record: None,
    kind: type[SupervisedFineTuning] = SupervisedFineTuning,
    dropout: float = 0.1,
    **machine: Any,
) -> tuple[dict[str, Tensor], list[float]]:
    """Weights and losses of two ranks with dropout, which go on from what lies in `folder`."""
    policy, own = gpt2(dropout), hardware(**{"devices": 2, "checkpoint_every": 2, **machine})
    data = StepData(TRAIN, [], HOW, own, seed=3)
    prepare(policy, TRAIN, own)
    module = kind(policy, HOW, len(data.steps()), own.logits_chunk, report)
    fit(module, data, folder, "test")
    return policy.state_dict(), [record["loss"] for record in module.history]


def test_a_training_that_is_told_to_end_saves_and_goes_on_to_the_bit(tmp_path: Path) -> None:
    """In shards, the harder case: replicas save what one process saves."""
    strategy = "fsdp2"
    weights, losses = trained(tmp_path / "whole", strategy=strategy)
    assert len(losses) == STEPS

    class Ended(Exception):
        pass

    def end(number: int, frame: object) -> None:
        raise Ended

    def tell(record: Record) -> None:
        if record["step"] == 3:
            threading.Timer(0, signal.raise_signal, [signal.SIGTERM]).start()

    before = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(Ended):
            trained(tmp_path / "ended", tell, Waiting, strategy=strategy, checkpoint_every=STEPS)
    finally:
        signal.signal(signal.SIGTERM, before)
    saved = torch.load(tmp_path / "ended" / "last.ckpt", weights_only=True)["global_step"]
    assert 3 <= saved <= 6  # the step at whose end the signal was raised, or one that was under way when all ranks knew
    told: list[Record] = []
    same_weights, same_losses = trained(tmp_path / "ended", told.append, strategy=strategy)
    assert [record["step"] for record in told] == list(range(1, STEPS + 1))  # the steps before its checkpoint too
    assert same_losses == losses
    assert all(torch.equal(same_weights[name], value) for name, value in weights.items())


def test_the_group_that_is_not_a_number_is_named_whichever_rank_has_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"step \d: the loss of g5 is NaN"):
        trained(tmp_path, kind=Poisoned)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2


class Weighed(SupervisedFineTuning):
    """Stops before its first step with the most memory that this process took for itself since it got the policy.

    Looked at before the policy is sharded, after that, and before the first step. Pages that it shares with other
    processes, as the whole weights are, do not count.
    """

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.before = own_memory()

    def configure_model(self) -> None:
        held = own_memory()
        super().configure_model()
        self.most = max(held, own_memory())

    def losses(self, part: MicroBatch) -> Any:
        raise UserError(f"took {max(self.most, own_memory()) - self.before} MiB")


def own_memory() -> int:
    """MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) // 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux alone tells a process's own memory")
def test_a_rank_never_holds_the_whole_weights(tmp_path: Path) -> None:
    policy, own = gpt2(0.0, width=1536), hardware(devices=2, strategy="fsdp2")
    whole = sum(p.numel() for p in policy.parameters()) * 4 / 2**20
    module = Weighed(policy, HOW, STEPS, own.logits_chunk, lambda record: None)
    with pytest.raises(UserError, match=r"took \d+ MiB") as told:
        fit(module, StepData(TRAIN, [], HOW, own, seed=3), tmp_path, "test")
    taken = int(str(told.value).split()[1])
    assert taken < 0.85 * whole  # a shard is half; what is gathered for one layer comes on top


def test_bf16_shards_train_as_one_device_does(tmp_path: Path) -> None:
    """But for rounding: the loss falls by far more than the two may differ."""
    found = []
    for ranks in (1, 2):
        _, losses = trained(tmp_path / str(ranks), devices=ranks, strategy="fsdp2", precision="bf16-mixed", dropout=0.0)
        found.append(losses)
    one, two = found
    assert one[0] - one[-1] > 0.3
    assert two == pytest.approx(one, abs=0.03)


def test_a_rank_holds_half_of_a_layer_of_16_times_64(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="shard of 512"):
        trained(tmp_path, kind=Sharded, strategy="fsdp2")
