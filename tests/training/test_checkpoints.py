"""Damaged and half-written checkpoints."""

import errno
import os
from pathlib import Path

import pytest
import torch
from killed_runs import trained
from lightning.pytorch import Trainer
from torch import Tensor

from selfcontrast.training.callbacks import damage
from selfcontrast.training.module import Record
from tiny import llama, lora, optim


def test_a_checkpoint_holds_no_frozen_weight(tmp_path: Path) -> None:
    policy = lora().wrap(llama(), seed=0)
    trained(tmp_path, optim(), ("end", 4), policy=policy, checkpoint_every=2)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    trainable = {f"policy.{name}" for name, p in policy.named_parameters() if p.requires_grad}
    assert saved["state_dict"].keys() == trainable
    assert len(trainable) == 2 * 2 * 7  # A and B of seven layers in two blocks


def test_fit_flipped_cut_or_empty_checkpoint_is_reported_and_the_weights_are_the_same(
    tmp_path: Path, whole: tuple[dict[str, Tensor], list[Record]], caplog: pytest.LogCaptureFixture
) -> None:
    """torch.load takes a flipped byte for a weight, and a cut file ended in a traceback at every further run."""
    trained(tmp_path, optim(validations=3), ("begin", 5), checkpoint_every=2)
    last = tmp_path / "last.ckpt"
    good = last.read_bytes()
    damages = [good[:at] + bytes([good[at] ^ 64]) + good[at + 1 :] for at in (len(good) // 3, len(good) // 2)]
    for number, data in enumerate([*damages, good[: len(good) // 2], b""], start=1):
        last.write_bytes(data)
        weights, history = trained(tmp_path, optim(validations=3), checkpoint_every=100)
        assert history == whole[1]
        assert all(torch.equal(weights[name], value) for name, value in whole[0].items())
        told = [record.getMessage() for record in caplog.records if "last.ckpt is damaged (" in record.getMessage()]
        assert len(told) == number
        assert told[-1].endswith("); training again from the first step")
        assert "\n" not in told[-1]
        assert not last.exists()


def test_fit_full_disk_leaves_no_half_written_checkpoint(
    tmp_path: Path, whole: tuple[dict[str, Tensor], list[Record]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The half would keep the next attempt from its space. So would that of an attempt that was killed."""
    save, saved = Trainer.save_checkpoint, []

    def full(trainer: Trainer, file: Path) -> None:
        assert not file.exists()
        saved.append(file)
        save(trainer, file)
        if len(saved) > 1:
            file.write_bytes(file.read_bytes()[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Trainer, "save_checkpoint", full)
    (tmp_path / "last.writing").write_bytes(b"of an attempt that was killed")
    with pytest.raises(OSError, match="No space left"):
        trained(tmp_path, optim(validations=3), checkpoint_every=2)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    monkeypatch.setattr(Trainer, "save_checkpoint", save)
    weights, history = trained(tmp_path, optim(validations=3), checkpoint_every=2)
    assert history == whole[1]
    assert all(torch.equal(weights[name], value) for name, value in whole[0].items())


def test_checkpoint_any_flipped_byte_is_found_or_changes_nothing(tmp_path: Path) -> None:
    trained(tmp_path, optim(validations=3), ("begin", 3), checkpoint_every=2)
    last = tmp_path / "last.ckpt"
    good, state = last.read_bytes(), torch.load(last, weights_only=True)["state_dict"]
    for at in range(0, len(good), max(1, len(good) // 300)):
        last.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        if not damage(last):  # the space between records, which fills them up to a multiple of 64 bytes
            found = torch.load(last, weights_only=True)["state_dict"]
            assert all(torch.equal(found[name], value) for name, value in state.items()), at
