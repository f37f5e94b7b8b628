"""Test training in several processes: resuming, failing, and ending on a signal."""

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
from selfcontrast.training.packed_module import Record
from selfcontrast.training.sft import SupervisedFineTuning
from selfcontrast.training.steps import MicroBatch
from tiny import gpt2, groups, hardware, optim

TRAIN = groups(8)
STEPS = 8
SETTINGS = optim(epochs=STEPS // 2)
pytestmark = pytest.mark.filterwarnings("ignore")


class WaitsForSignal(SupervisedFineTuning):
    """Wait in the sixth step until this process receives a signal."""

    def losses(self, microbatch: MicroBatch) -> Any:
        if self.trainer.global_step == 5:
            handler: Any = signal.getsignal(signal.SIGTERM)
            while handler.__self__.received is None:
                time.sleep(0.01)
        return super().losses(microbatch)


class HasNanLoss(SupervisedFineTuning):
    """From step 3 on, the loss of one group is NaN."""

    def losses(self, microbatch: MicroBatch) -> Any:
        loss, sums = super().losses(microbatch)
        if self.trainer.global_step >= 3 and "g5" in microbatch.packed.ids:
            index = microbatch.packed.ids.index("g5")
            loss = loss * torch.where(torch.arange(len(loss)) == index, torch.nan, 1.0)
        return loss, sums


class ReportsShard(SupervisedFineTuning):
    """Stop and report the size of a local shard."""

    def losses(self, microbatch: MicroBatch) -> Any:
        layer = self.policy.transformer.h[0].mlp.c_fc.weight
        assert isinstance(layer, DTensor)
        raise UserError(f"shard of {layer.to_local().numel()}")


def run_ranks(
    folder: Path,
    report: Callable[[Record], None] = lambda record: None,
    kind: type[SupervisedFineTuning] = SupervisedFineTuning,
    dropout: float = 0.1,
    **options: Any,
) -> tuple[dict[str, Tensor], list[float]]:
    """Train on two ranks with dropout, resuming from a checkpoint in `folder`. Return weights and losses."""
    policy, hardware_config = gpt2(dropout), hardware(**{"devices": 2, "checkpoint_every": 2, **options})
    data = StepData(TRAIN, [], SETTINGS, hardware_config, seed=3)
    prepare(policy, TRAIN, hardware_config)
    module = kind(policy, SETTINGS, len(data.steps()), hardware_config.logits_chunk, report)
    fit(module, data, folder, "test")
    return policy.state_dict(), [record["loss"] for record in module.history]


def test_ranks_ended_by_signal_resume_bit_equal(tmp_path: Path) -> None:
    """FSDP2 is the harder case: DDP saves the same checkpoint as one process."""
    strategy = "fsdp2"
    weights, losses = run_ranks(tmp_path / "whole", strategy=strategy)
    assert len(losses) == STEPS

    class Ended(Exception):
        pass

    def end(number: int, frame: object) -> None:
        raise Ended

    def end_after_step_3(record: Record) -> None:
        if record["step"] == 3:
            threading.Timer(0, signal.raise_signal, [signal.SIGTERM]).start()

    old_handler = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(Ended):
            run_ranks(tmp_path / "ended", end_after_step_3, WaitsForSignal, strategy=strategy, checkpoint_every=STEPS)
    finally:
        signal.signal(signal.SIGTERM, old_handler)
    saved = torch.load(tmp_path / "ended" / "last.ckpt", weights_only=True)["global_step"]
    assert 3 <= saved <= 6  # the signal's step, or a step that ran until all ranks had the signal
    reported: list[Record] = []
    same_weights, same_losses = run_ranks(tmp_path / "ended", reported.append, strategy=strategy)
    assert [record["step"] for record in reported] == list(range(1, STEPS + 1))  # also the steps before the checkpoint
    assert same_losses == losses
    assert all(torch.equal(same_weights[name], value) for name, value in weights.items())


def test_ranks_nan_loss_names_group_on_any_rank(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"step \d.*g5"):
        run_ranks(tmp_path, kind=HasNanLoss)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2


class MeasuresMemory(SupervisedFineTuning):
    """Stop before the first step and report the peak private memory since this process received the policy.

    Memory is read before and after sharding, and before the first step. Pages shared with other processes, such as the
    whole weights, do not count.
    """

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.before = private_memory()

    def configure_model(self) -> None:
        unsharded = private_memory()
        super().configure_model()
        self.peak = max(unsharded, private_memory())

    def losses(self, microbatch: MicroBatch) -> Any:
        raise UserError(f"took {max(self.peak, private_memory()) - self.before} MiB")


def private_memory() -> int:
    """Return this process's private memory in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) // 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux reports private memory")
def test_ranks_fsdp2_never_holds_whole_weights(tmp_path: Path) -> None:
    policy, hardware_config = gpt2(0.0, width=1536), hardware(devices=2, strategy="fsdp2")
    all_weights = sum(p.numel() for p in policy.parameters()) * 4 / 2**20
    module = MeasuresMemory(policy, SETTINGS, STEPS, hardware_config.logits_chunk, lambda record: None)
    with pytest.raises(UserError, match=r"took \d+ MiB") as caught:
        fit(module, StepData(TRAIN, [], SETTINGS, hardware_config, seed=3), tmp_path, "test")
    mib = int(str(caught.value).split()[1])
    assert mib < 0.85 * all_weights  # a rank holds half of the weights and one gathered layer


def test_ranks_bf16_shards_train_as_one_device(tmp_path: Path) -> None:
    """The loss falls by much more than the allowed difference."""
    results = []
    for ranks in (1, 2):
        _, losses = run_ranks(
            tmp_path / str(ranks), devices=ranks, strategy="fsdp2", precision="bf16-mixed", dropout=0.0
        )
        results.append(losses)
    on_one_rank, on_two_ranks = results
    assert on_one_rank[0] - on_one_rank[-1] > 0.3
    assert on_two_ranks == pytest.approx(on_one_rank, abs=0.03)


def test_ranks_fsdp2_holds_half_of_each_layer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="shard of 512"):
        run_ranks(tmp_path, kind=ReportsShard, strategy="fsdp2")
