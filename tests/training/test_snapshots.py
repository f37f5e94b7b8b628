"""Test that snapshots hold the weights of their step, even if training is killed later."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from killed_runs import run_training
from safetensors.torch import load_file
from test_align import OBJECTIVE, first_groups
from test_fit import float64_policy
from torch import Tensor

from selfcontrast.engines.local import Local
from selfcontrast.errors import UserError
from selfcontrast.models.adapters import Adapter, NoAdapter
from selfcontrast.training.align import align, checkpoint_folder, checkpoint_steps
from selfcontrast.training.callbacks import snapshot
from selfcontrast.training.fit import StepData, fit, prepare
from selfcontrast.training.groups import StoredScores
from selfcontrast.training.optim import OptimConfig
from selfcontrast.training.reference import Scoring, read_reference, score_reference
from selfcontrast.training.sft import SupervisedFineTuning
from selfcontrast.training.training import Training
from tiny import groups, hardware, lora, optim, policy_folder

STEADY = optim(schedule="constant", warmup_ratio=0.0, batch_size=2)  # an update does not depend on the number of steps


def load_snapshot(folder: Path, step: int) -> dict[str, Tensor]:
    return dict(torch.load(snapshot(folder, step), weights_only=True))


def test_checkpoint_steps_are_evenly_spaced_without_the_last() -> None:
    assert checkpoint_steps(188, 4) == [47, 94, 141]
    assert checkpoint_steps(10, 4) == [2, 5, 7]
    assert checkpoint_steps(3, 3) == [1, 2]
    assert checkpoint_steps(3, 1) == checkpoint_steps(3, 0) == []
    with pytest.raises(UserError, match=r"evaluation\.checkpoints=4.* 3 steps"):
        checkpoint_steps(3, 4)


def run_align(folder: Path, sft: Path, adapter: Adapter, settings: OptimConfig, checkpoints: int) -> dict[str, object]:
    folder.mkdir()
    rows, _ = first_groups(2, max_length=100)
    score_reference(folder, Local(3, 1), Scoring(sft, "float32", hardware()), rows, "cpu")
    training = Training(adapter, settings, hardware(), 0, lambda record: None, checkpoints)
    torch.manual_seed(0)  # seeds dropout, as a job seeds every stage
    return align(folder, sft, "float32", rows, StoredScores(read_reference(folder)), OBJECTIVE, training)


def same_weights(folder: Path, other: Path) -> bool:
    weights, others = (load_file(path / "model.safetensors") for path in (folder, other))
    return weights.keys() == others.keys() and all(torch.equal(value, others[name]) for name, value in weights.items())


@pytest.mark.parametrize("adapter", [NoAdapter(), lora()], ids=["all weights", "LoRA with dropout"])
def test_align_checkpoint_equals_policy_of_shorter_training(tmp_path: Path, adapter: Adapter) -> None:
    """Checkpoints do not change the final policy."""
    sft = policy_folder(tmp_path / "sft")
    summary = run_align(tmp_path / "with", sft, adapter, replace(STEADY, epochs=4), 4)
    assert (summary["steps"], summary["checkpoints"]) == (8, [2, 4, 6])
    assert "checkpoints" not in run_align(tmp_path / "without", sft, adapter, replace(STEADY, epochs=4), 0)
    assert same_weights(tmp_path / "with/model", tmp_path / "without/model")
    assert not (tmp_path / "without/checkpoints").exists()
    for epochs in (1, 2, 3):
        run_align(tmp_path / str(epochs), sft, adapter, replace(STEADY, epochs=epochs), 0)
        assert same_weights(checkpoint_folder(tmp_path / "with", epochs), tmp_path / str(epochs) / "model")
    card = (checkpoint_folder(tmp_path / "with", 1) / "README.md").read_text()
    assert "after 2 of 8 steps" in card
    names = [{file.name for file in path.iterdir()} for path in (sft, checkpoint_folder(tmp_path / "with", 1))]
    assert names[0] == names[1]


@pytest.mark.parametrize("every", [1, 2, 4])
@pytest.mark.parametrize("kill_at", [("forward", 2), ("begin", 3), ("end", 4), ("validation", 4), ("forward", 5)])
def test_fit_killed_and_resumed_has_the_same_snapshots(tmp_path: Path, every: int, kill_at: tuple[str, int]) -> None:
    settings, steps = optim(validations=3), (1, 3, 4)
    weights, _ = run_training(tmp_path / "whole", settings, snapshots=steps)
    without, _ = run_training(tmp_path / "without", settings)
    assert all(torch.equal(without[name], value) for name, value in weights.items())
    run_training(tmp_path, settings, kill_at, snapshots=steps, checkpoint_every=every)
    run_training(tmp_path, settings, snapshots=steps, checkpoint_every=every)
    for step in steps:
        expected, resumed = load_snapshot(tmp_path / "whole", step), load_snapshot(tmp_path, step)
        assert all(torch.equal(resumed[name], value) for name, value in expected.items())
    embeddings = [load_snapshot(tmp_path, step)["transformer.wte.weight"] for step in steps]
    assert not torch.equal(embeddings[0], embeddings[1])
    assert not torch.equal(embeddings[1], embeddings[2])


def test_fit_damaged_snapshot_is_reported_and_rewritten(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_training(tmp_path, optim(), ("begin", 4), snapshots=(2,), checkpoint_every=3)
    intact = snapshot(tmp_path, 2).read_bytes()
    snapshot(tmp_path, 2).write_bytes(intact[:1000])
    run_training(tmp_path, optim(), snapshots=(2,), checkpoint_every=3)
    assert "step-2.weights is damaged" in caplog.text
    assert load_snapshot(tmp_path, 2).keys()


@pytest.mark.parametrize(
    ("strategy", "adapter"), [("ddp", NoAdapter()), ("fsdp2", NoAdapter()), ("fsdp2", lora(dropout=0.0))]
)
@pytest.mark.filterwarnings("ignore")
def test_fit_two_ranks_write_the_snapshots_of_one_rank(tmp_path: Path, strategy: str, adapter: Adapter) -> None:
    settings, rows = optim(batch_size=3), groups(7)
    for ranks in (1, 2):
        hardware_config = hardware(devices=ranks, strategy=strategy, max_tokens_per_microbatch=20)
        policy, data = (
            adapter.wrap(float64_policy(), seed=0).double(),
            StepData(rows, [], settings, hardware_config, seed=3),
        )
        data.snapshots = (2, 4)
        prepare(policy, rows, hardware_config)
        module = SupervisedFineTuning(
            policy, settings, len(data.steps()), hardware_config.logits_chunk, lambda record: None
        )
        assert fit(module, data, tmp_path / str(ranks), "test")
    for step in data.snapshots:
        weights, other_weights = (load_snapshot(tmp_path / str(ranks), step) for ranks in (1, 2))
        assert weights.keys() == other_weights.keys()
        for name, value in weights.items():
            torch.testing.assert_close(other_weights[name], value, atol=1e-9, rtol=1e-9)
