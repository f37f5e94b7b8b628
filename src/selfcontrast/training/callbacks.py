"""What watches over a training run: exact random states, checkpoints between steps, snapshots, one progress bar."""

import random
import signal
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from selfcontrast.errors import printable
from selfcontrast.models.weights import first_line
from selfcontrast.store.sealed import publish
from selfcontrast.training.sharding import belongs, whole_weights
from selfcontrast.training.signals import Postponed


class RandomStates(Callback):
    """Dropout after a resume draws what it would have drawn, on every rank."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.saved: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        own = _random_states()
        if not dist.is_initialized():
            return {"ranks": [own]}
        every: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(every, own)
        return {"ranks": every}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.saved = state_dict["ranks"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.rank < len(self.saved):  # more ranks than there were go on from their seeds
            _restore_random_states(self.saved[self.rank])


def _random_states() -> dict[str, Any]:
    """In plain containers and tensors, as `weights_only` loading demands."""
    name, keys, position, has_gauss, cached = np.random.get_state()
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "python": [version, list(internal), gauss],
    }


def _restore_random_states(states: dict[str, Any]) -> None:
    name, keys, position, has_gauss, cached = states["numpy"]
    version, internal, gauss = states["python"]
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state(states["cuda"][0])
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    random.setstate((version, tuple(internal), gauss))


class Checkpoints(Callback):
    """Writes the newest state to `file`, atomically, every so many steps, and when a signal is about to end the job.

    At the start of the next step, not at the end of this one: then the validation that follows a step is in it too.
    """

    def __init__(self, file: Path, every: int) -> None:
        self.file = file
        self.every = every
        self.signals = Postponed()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.signals.__enter__()  # here, because Lightning has set its own handlers just before

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        # All ranks save, or none: a signal reaches them at different moments.
        ending = trainer.strategy.reduce_boolean_decision(self.signals.noted is not None, all=False)
        if trainer.global_step and (ending or trainer.global_step % self.every == 0):
            self._save(trainer)
        if ending:
            self.signals.noted = self.signals.noted or signal.SIGTERM
            self.signals.deliver()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.signals.deliver()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.signals.__exit__(None, None, None)

    def _save(self, trainer: Trainer) -> None:
        _write_whole(self.file, trainer.save_checkpoint, trainer.is_global_zero)


class Snapshots(Callback):
    """Writes the trained weights after some steps, each to a file of its own in `folder`.

    At the end of a step, so before the checkpoint that a later attempt goes on from. That attempt finds the files of
    earlier steps, and writes those of later ones again, which then belong to its own path.
    """

    def __init__(self, folder: Path, steps: Collection[int]) -> None:
        self.folder = folder
        self.steps = steps

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if step not in self.steps:
            return
        policy: Any = pl_module.policy
        frozen = {name for name, p in policy.named_parameters(remove_duplicate=False) if not p.requires_grad}
        weights = {name: value for name, value in whole_weights(policy).items() if not belongs(name, frozen)}
        if trainer.is_global_zero:
            _write_whole(snapshot(self.folder, step), lambda file: torch.save(weights, file), publishes=True)


def snapshot(folder: Path, step: int) -> Path:
    """The file of a training's weights after a step."""
    return folder / f"step-{step}.weights"


def _write_whole(file: Path, write: Callable[[Path], object], publishes: bool) -> None:
    """Let `write` write another file, which then gets this name. Where ranks write together, one of them publishes."""
    partial = writing(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        write(partial)
        if publishes:
            publish(partial, file)
    except BaseException:
        if partial.is_file():  # of a full disk: it would keep the next attempt from its space
            partial.unlink()
        raise


def writing(checkpoint: Path) -> Path:
    """The file that a checkpoint has this name of while it is written."""
    return checkpoint.with_suffix(".writing")


def damage(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be trusted; None where it can be loaded and its records have their checksums.

    torch.save writes a checksum of every record, and torch.load compares none.
    """
    try:
        torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)
        with ZipFile(checkpoint) as records:
            bad = records.testzip()
    except Exception as error:  # whatever a damaged archive makes of its reader
        return printable(first_line(error))
    return f"the checksum of its record {bad} differs" if bad else None


class StageProgress(TQDMProgressBar):
    """One bar for the whole training, named after its stage."""

    def __init__(self, stage: str) -> None:
        super().__init__(refresh_rate=5)
        self.stage = stage

    def init_train_tqdm(self) -> Any:
        bar = super().init_train_tqdm()
        bar.set_description(self.stage)
        return bar

    def init_validation_tqdm(self) -> Any:
        return Tqdm(disable=True)  # made disabled: one that is disabled later has already drawn itself

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        super().on_train_epoch_start(trainer)
        self.train_progress_bar.set_description(self.stage)

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        history = getattr(pl_module, "history", [])
        return {name: f"{history[-1][name]:.3f}" for name in ("loss", "margin") if history and name in history[-1]}
