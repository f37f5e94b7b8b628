"""Runs a Lightning module over its steps, and goes on exactly where an earlier attempt was killed.

A checkpoint holds weights, optimiser, schedule, random states and the history of metrics; the data's position is the
number of the step, because `Steps` is a function of it. Resumed weights are bit-equal to an uninterrupted run's on CPU.
Checkpoints are written between steps alone: one made in the middle of a step, as an exception leaves it, would hold
random states that the step has already drawn from.
"""

import logging
import os
import random
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.utils.data import DataLoader

from selfcontrast.models.log_probs import self_check
from selfcontrast.models.packing import Group
from selfcontrast.models.shared_prompt import use_shared_prompt
from selfcontrast.training.module import PackedModule
from selfcontrast.training.recipe import Hardware, Recipe
from selfcontrast.training.steps import Pass, Remaining, Step, Steps, rank_passes

log = logging.getLogger(__name__)


class StepData(LightningDataModule):
    """Groups for training and validation, as steps and passes for this rank."""

    def __init__(
        self, groups: list[Group], validation: list[Group], recipe: Recipe, hardware: Hardware, seed: int
    ) -> None:
        super().__init__()
        self.groups = groups
        self.validation = validation
        self.recipe = recipe
        self.hardware = hardware
        self.seed = seed

    def steps(self, rank: int = 0, ranks: int = 1) -> Steps:
        recipe, tokens = self.recipe, self.hardware.tokens_per_pass
        return Steps(self.groups, recipe.prompts_per_step, recipe.epochs, tokens, self.seed, rank, ranks)

    def train_dataloader(self) -> DataLoader[Step]:
        trainer: Any = self.trainer
        steps = self.steps(trainer.global_rank, trainer.world_size)
        sampler = Remaining(len(steps), trainer.global_step)
        return DataLoader(steps, batch_size=None, sampler=sampler, generator=torch.Generator())

    def val_dataloader(self) -> DataLoader[Pass]:
        trainer: Any = self.trainer
        tokens, rank, ranks = self.hardware.tokens_per_pass, trainer.global_rank, trainer.world_size
        passes = rank_passes(self.validation, tokens, rank, ranks) if self.validation else []
        # A generator of its own: a loader's iterator else draws from the global one, and so from training's dropout.
        return DataLoader(passes, batch_size=None, generator=torch.Generator())  # type: ignore[arg-type]


class RandomStates(Callback):
    """Dropout after a resume draws what it would have drawn."""

    def __init__(self) -> None:
        self.saved: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        name, keys, position, has_gauss, cached = np.random.get_state()
        version, internal, gauss = random.getstate()
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "numpy": [
                str(name),
                torch.from_numpy(np.asarray(keys).astype(np.int64)),
                position,
                has_gauss,
                cached,
            ],
            "python": [version, list(internal), gauss],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.saved = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.saved is None:
            return
        name, keys, position, has_gauss, cached = self.saved["numpy"]
        version, internal, gauss = self.saved["python"]
        torch.set_rng_state(self.saved["torch"])
        if self.saved["cuda"]:
            torch.cuda.set_rng_state_all(self.saved["cuda"])
        np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
        random.setstate((version, tuple(internal), gauss))


class Checkpoints(Callback):
    """Writes the newest state to `file`, atomically, every so many steps.

    At the start of the next step, not at the end of this one: then the validation that follows a step is in it too.
    """

    def __init__(self, file: Path, every: int) -> None:
        self.file = file
        self.every = every

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step and trainer.global_step % self.every == 0:
            partial = self.file.with_suffix(".writing")
            trainer.save_checkpoint(partial)
            if trainer.is_global_zero:
                os.replace(partial, self.file)


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


def prepare(policy: Any, groups: list[Group], hardware: Hardware) -> None:
    """Puts a policy into the form it is trained in, and checks one group against the ordinary forward pass.

    Raises `UserError` for a model that packed groups would be computed wrongly by.
    """
    use_shared_prompt(policy)
    if hardware.gradient_checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
    if hardware.self_check:
        tolerance = 0.2 if policy.dtype == torch.bfloat16 else 1e-3
        self_check(policy, groups[:64], tolerance)
    policy.train()


def fit(module: PackedModule, data: StepData, folder: Path, stage: str) -> None:
    """Trains `module` to the end, from the newest checkpoint in `folder` where there is one."""
    hardware, steps = data.hardware, len(data.steps())
    hardware.apply_threads()
    last = folder / "last.ckpt"
    callbacks: list[Callback] = [RandomStates(), Checkpoints(last, hardware.checkpoint_every)]
    if sys.stderr.isatty():
        callbacks.append(StageProgress(stage))
    with warnings.catch_warnings():
        _quiet()
        trainer = Trainer(
            accelerator=hardware.accelerator,
            devices=hardware.devices,
            num_nodes=hardware.num_nodes,
            strategy=hardware.strategy,
            precision=hardware.precision,
            max_epochs=1,  # epochs are inside Steps: an epoch of Lightning's is the whole run
            val_check_interval=max(1, steps // data.recipe.validations) if data.recipe.validations else None,
            limit_val_batches=1.0 if data.recipe.validations and data.validation else 0,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,  # `Checkpoints` does it
            enable_model_summary=False,
            enable_progress_bar=sys.stderr.isatty(),
            callbacks=callbacks,
            default_root_dir=folder,
        )
        if last.exists():
            log.info("%s: continuing from the checkpoint of an earlier attempt", stage)
        try:
            trainer.fit(module, datamodule=data, ckpt_path=str(last) if last.exists() else None, weights_only=True)
        except SIGTERMException:
            sys.exit(143)  # Lightning's own code is 0, which a scheduler takes for success
        except SystemExit as stop:
            if trainer.interrupted:  # Lightning turns Ctrl-C into an exit, whose reason nobody could tell
                raise KeyboardInterrupt from stop
            raise


def _quiet() -> None:
    """Lightning's notices are about choices made here on purpose."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
