"""Test damaged and partially written checkpoints."""

import errno
import os
from pathlib import Path

import pytest
import torch
from killed_runs import run_training
from lightning.pytorch import Trainer
from torch import Tensor

from selfcontrast.training.callbacks import damage
from selfcontrast.training.packed_module import Record
from tiny import llama, lora, optim


def test_checkpoint_of_lora_has_no_frozen_weight(tmp_path: Path) -> None:
    policy = lora().wrap(llama(), seed=0)
    run_training(tmp_path, optim(), ("end", 4), policy=policy, checkpoint_every=2)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    trainable = {f"policy.{name}" for name, p in policy.named_parameters() if p.requires_grad}
    assert saved["state_dict"].keys() == trainable
    assert len(trainable) == 2 * 2 * 7  # A and B of seven layers in two blocks


def test_fit_damaged_checkpoint_is_reported_and_training_restarts(
    tmp_path: Path, uninterrupted: tuple[dict[str, Tensor], list[Record]], caplog: pytest.LogCaptureFixture
) -> None:
    """torch.load accepts a flipped byte in a weight. A truncated file once made every later run fail."""
    run_training(tmp_path, optim(validations=3), ("begin", 5), checkpoint_every=2)
    last = tmp_path / "last.ckpt"
    intact = last.read_bytes()
    damages = [intact[:at] + bytes([intact[at] ^ 64]) + intact[at + 1 :] for at in (len(intact) // 3, len(intact) // 2)]
    for number, data in enumerate([*damages, intact[: len(intact) // 2], b""], start=1):
        last.write_bytes(data)
        weights, history = run_training(tmp_path, optim(validations=3), checkpoint_every=100)
        assert history == uninterrupted[1]
        assert all(torch.equal(weights[name], value) for name, value in uninterrupted[0].items())
        messages = [record.getMessage() for record in caplog.records if "last.ckpt is damaged (" in record.getMessage()]
        assert len(messages) == number
        assert "from the first step" in messages[-1]
        assert "\n" not in messages[-1]
        assert not last.exists()


def test_fit_full_disk_leaves_no_partial_checkpoint(
    tmp_path: Path, uninterrupted: tuple[dict[str, Tensor], list[Record]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next attempt needs the space of partial files, including those of killed attempts."""
    save, saved = Trainer.save_checkpoint, []

    def fill_disk(trainer: Trainer, file: Path) -> None:
        assert not file.exists()
        saved.append(file)
        save(trainer, file)
        if len(saved) > 1:
            file.write_bytes(file.read_bytes()[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Trainer, "save_checkpoint", fill_disk)
    (tmp_path / "last.writing").write_bytes(b"left by a killed attempt")
    with pytest.raises(OSError, match="No space left"):
        run_training(tmp_path, optim(validations=3), checkpoint_every=2)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    monkeypatch.setattr(Trainer, "save_checkpoint", save)
    weights, history = run_training(tmp_path, optim(validations=3), checkpoint_every=2)
    assert history == uninterrupted[1]
    assert all(torch.equal(weights[name], value) for name, value in uninterrupted[0].items())


def test_damage_any_flipped_byte_is_found_or_harmless(tmp_path: Path) -> None:
    run_training(tmp_path, optim(validations=3), ("begin", 3), checkpoint_every=2)
    last = tmp_path / "last.ckpt"
    intact, state = last.read_bytes(), torch.load(last, weights_only=True)["state_dict"]
    for at in range(0, len(intact), max(1, len(intact) // 300)):
        last.write_bytes(intact[:at] + bytes([intact[at] ^ 1]) + intact[at + 1 :])
        if not damage(last):  # the byte belongs to the padding between records
            loaded = torch.load(last, weights_only=True)["state_dict"]
            assert all(torch.equal(loaded[name], value) for name, value in state.items()), at
