"""Lightning callbacks: random states, checkpoints between steps, weight snapshots and the progress bar."""

import logging
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
from selfcontrast.training.sharding import is_frozen, whole_weights
from selfcontrast.training.signals import DeferredSignals

log = logging.getLogger(__name__)


class RandomStates(Callback):
    """Save and restore the random states of every rank, so that dropout draws the same masks after a resume."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.saved: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        states = _random_states()
        if not dist.is_initialized():
            return {"ranks": [states]}
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, states)
        return {"ranks": gathered}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.saved = state_dict["ranks"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.rank < len(self.saved):  # a rank without a saved state keeps the state of its seed
            _restore_random_states(self.saved[self.rank])


def _random_states() -> dict[str, Any]:
    """Return the random states as plain containers and tensors, which `weights_only` loading requires."""
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
    """Write the state to `file`, atomically, every `every` steps and when a signal is about to end the job.

    The state is written at the start of the next step, so that it includes the validation after the previous step.

    Args:
        stage: name of the stage in log lines.
    """

    def __init__(self, file: Path, every: int, stage: str) -> None:
        self.file = file
        self.every = every
        self.stage = stage
        self.signals = DeferredSignals()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.signals.__enter__()  # not earlier: Lightning sets its own handlers just before this hook
        if trainer.global_step:
            self._log(trainer, "resuming after step %d of %d")

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        # All ranks save or none does, although a signal reaches them at different moments.
        ending = trainer.strategy.reduce_boolean_decision(self.signals.received is not None, all=False)
        if trainer.global_step and (ending or trainer.global_step % self.every == 0):
            self._save(trainer)
        if ending:
            if trainer.global_step:
                self._log(trainer, "saved after step %d of %d")
            self.signals.received = self.signals.received or signal.SIGTERM
            self.signals.deliver()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.signals.deliver()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.signals.__exit__(None, None, None)

    def _save(self, trainer: Trainer) -> None:
        _write_atomically(self.file, trainer.save_checkpoint, trainer.is_global_zero)

    def _log(self, trainer: Trainer, message: str) -> None:
        if trainer.is_global_zero:
            log.info(f"%s: {message}", self.stage, trainer.global_step, int(trainer.num_training_batches))


class Snapshots(Callback):
    """Write the trained weights after each of `steps` to a separate file in `folder`.

    A snapshot is written at the end of its step, before the checkpoint. A resumed attempt finds the files of earlier
    steps and rewrites those of later steps, so that all files belong to one run.
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
        weights = {name: value for name, value in whole_weights(policy).items() if not is_frozen(name, frozen)}
        if trainer.is_global_zero:
            _write_atomically(snapshot(self.folder, step), lambda file: torch.save(weights, file), publishes=True)


def snapshot(folder: Path, step: int) -> Path:
    """Return the file of the weights after a step."""
    return folder / f"step-{step}.weights"


def _write_atomically(file: Path, write: Callable[[Path], object], publishes: bool) -> None:
    """Call `write` on a partial file, then rename it to `file` if `publishes`. If all ranks write, one publishes."""
    partial = partial_file(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        write(partial)
        if publishes:
            publish(partial, file)
    except BaseException:
        if partial.is_file():  # if the disk is full, the next attempt needs the space
            partial.unlink()
        raise


def partial_file(checkpoint: Path) -> Path:
    """Return the name of a checkpoint's file while it is being written."""
    return checkpoint.with_suffix(".writing")


def damage(checkpoint: Path) -> str | None:
    """Return why a checkpoint is damaged; None if it loads and its records match their checksums.

    torch.save writes a checksum per record, but torch.load does not check them.
    """
    try:
        torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)
        with ZipFile(checkpoint) as records:
            bad = records.testzip()
    except Exception as error:  # a damaged archive may raise anything
        return printable(first_line(error))
    return f"record {bad} does not match its checksum" if bad else None


class StageProgress(TQDMProgressBar):
    """A single progress bar for the whole training, labelled with its stage."""

    def __init__(self, stage: str) -> None:
        super().__init__(refresh_rate=5)
        self.stage = stage

    def init_train_tqdm(self) -> Any:
        bar = super().init_train_tqdm()
        bar.set_description(self.stage)
        return bar

    def init_validation_tqdm(self) -> Any:
        return Tqdm(disable=True)  # a bar that is disabled later has already been drawn

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        super().on_train_epoch_start(trainer)
        self.train_progress_bar.set_description(self.stage)

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        history = getattr(pl_module, "history", [])
        return {name: f"{history[-1][name]:.3f}" for name in ("loss", "margin") if history and name in history[-1]}
