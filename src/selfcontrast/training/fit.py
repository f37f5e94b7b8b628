"""Runs a Lightning module over its steps, and goes on exactly where an earlier attempt was killed.

A checkpoint holds weights, optimiser, schedule, random states and the history of metrics; the data's position is the
number of the step, because `Steps` is a function of it. Resumed weights are bit-equal to an uninterrupted run's on CPU.
Checkpoints are written between steps alone: one made in the middle of a step, as an exception leaves it, would hold
random states that the step has already drawn from.
"""

import logging
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.modeling_layers import GradientCheckpointingLayer

from selfcontrast.compilation import end_workers_at_exit
from selfcontrast.errors import UserError
from selfcontrast.models.log_probs import self_check
from selfcontrast.models.packing import Group
from selfcontrast.models.shared_prompt import use_shared_prompt
from selfcontrast.progress import count
from selfcontrast.training.callbacks import (
    Checkpoints,
    RandomStates,
    Snapshots,
    StageProgress,
    damage,
    snapshot,
    writing,
)
from selfcontrast.training.hardware import Hardware
from selfcontrast.training.memory import bytes_per_token, fitting_pass
from selfcontrast.training.module import PackedModule
from selfcontrast.training.nodes import this_node
from selfcontrast.training.optim import OptimConfig
from selfcontrast.training.ranks import Ranks
from selfcontrast.training.recomputation import checkpoint_layers
from selfcontrast.training.sharding import strategy, whole_weights
from selfcontrast.training.steps import MicroBatch, Remaining, Step, Steps, rank_microbatches
from selfcontrast.training.weight_copies import UseCopies

log = logging.getLogger(__name__)

LAST = "last.ckpt"


class StepData(LightningDataModule):
    """Groups for training and validation, as steps and passes for this rank.

    `unshared` is why the model cannot share a prompt among responses; None where it can.
    """

    def __init__(
        self,
        groups: list[Group],
        validation: list[Group],
        optim: OptimConfig,
        hardware: Hardware,
        seed: int,
        unshared: str | None = None,
    ) -> None:
        super().__init__()
        self.groups = groups
        self.validation = validation
        self.optim = optim
        self.hardware = hardware
        self.seed = seed
        self.unshared = unshared
        self.snapshots: Sequence[int] = ()  # steps after which the weights are kept
        self.bytes_per_token: float | None = None  # of activations, where passes are to fill a GPU's memory
        self._max_tokens_per_microbatch: int | None = None

    def steps(self, rank: int = 0, ranks: int = 1) -> Steps:
        optim, tokens = self.optim, self._max_tokens_per_microbatch or self.hardware.fixed_tokens_per_microbatch()
        per_step, place = optim.batch_size, (rank, ranks)
        may_share = self.unshared is None
        return Steps(self.groups, per_step, optim.epochs, tokens, self.seed, optim.tokens, place, may_share)

    def train_dataloader(self) -> DataLoader[Step]:
        trainer: Any = self.trainer
        if self.bytes_per_token is not None:
            policy = trainer.lightning_module.policy
            tokens = fitting_pass(policy, trainer.optimizers, self.hardware, self.bytes_per_token)
            self._max_tokens_per_microbatch = tokens
            if trainer.is_global_zero:
                log.info("hardware.max_tokens_per_microbatch=auto: %d tokens", tokens)
        steps = self.steps(trainer.global_rank, trainer.world_size)
        sampler = Remaining(len(steps), trainer.global_step)
        return DataLoader(steps, batch_size=None, sampler=sampler, generator=torch.Generator())

    def val_dataloader(self) -> DataLoader[MicroBatch]:
        trainer: Any = self.trainer
        tokens = self._max_tokens_per_microbatch or self.hardware.fixed_tokens_per_microbatch()
        rank, ranks = trainer.global_rank, trainer.world_size
        microbatches = rank_microbatches(self.validation, tokens, rank, ranks) if self.validation else []
        # A generator of its own: a loader's iterator else draws from the global one, and so from training's dropout.
        return DataLoader(microbatches, batch_size=None, generator=torch.Generator())  # type: ignore[arg-type]


def prepare(policy: Any, groups: list[Group], hardware: Hardware) -> None:
    """Puts a policy into the form it is trained in, and checks one group against the ordinary forward pass.

    Raises `UserError` for a model that packed groups would be computed wrongly by.
    """
    positions = getattr(policy.config.get_text_config(), "max_position_embeddings", None)
    longest = max(len(group.prompt) + max(map(len, group.responses)) for group in groups)
    if positions is not None and longest > positions:
        raise UserError(
            f"a prompt with its response has {longest} tokens, and the model {positions} positions: "
            "lower sft.max_length and trainer.max_length, or max_length"
        )
    use_shared_prompt(policy, hardware.attention)
    if hardware.gradient_checkpointing:
        checkpoint_layers(policy, hardware.gradient_checkpointing)
    if hardware.self_check:
        sharded = hardware.strategy == "fsdp2" and hardware.devices * hardware.num_nodes > 1
        policy.to("cpu" if sharded else hardware.device)  # a sharded model need not fit on one device
        tolerance = 0.2 if _rounds(policy) else 1e-3
        use_shared_prompt(policy, _checked_attention(hardware, sharded))
        self_check(policy, groups[:64], tolerance)
        use_shared_prompt(policy, hardware.attention)
        policy.to("cpu")  # from where it goes to the ranks
    policy.train()


def _rounds(policy: Any) -> bool:
    """Whether products are of bfloat16: of the weights' type, or of the one that a quantised layer computes in."""
    return policy.dtype == torch.bfloat16 or any(
        getattr(layer, "compute_dtype", None) == torch.bfloat16 for layer in policy.modules()
    )


def _checked_attention(hardware: Hardware, sharded: bool) -> str:
    """The way that a model is checked by: in its weights' type, in which varlen may have no kernel on a GPU."""
    return hardware.attention if sharded or hardware.device == "cpu" else "masked"


def fit(module: PackedModule, data: StepData, folder: Path, stage: str) -> bool:
    """Trains `module` to the end, from the newest checkpoint in `folder` where there is one.

    Returns whether this process is to go on with the trained policy: on the first node alone.
    """
    hardware = data.hardware
    module.peak_tflops = hardware.peak_tflops
    node = this_node(hardware.num_nodes)
    last = folder / LAST
    for kept in (last, *(snapshot(folder, step) for step in data.snapshots)):
        writing(kept).unlink(missing_ok=True)  # of an attempt that was killed: its space may be needed
        if kept.exists() and (why := damage(kept)):
            log.warning("%s: %s is damaged (%s); training again from the first step", stage, kept, why)
            last.unlink(missing_ok=True)
    steps = data.steps()
    if not steps.sharing and any(group.negatives for group in data.groups):
        _tell_of_rows(stage, data.unshared, steps.bound)
    if hardware.max_tokens_per_microbatch == "auto" and hardware.device == "cuda":
        data.bytes_per_token = bytes_per_token(module.policy, hardware)
    count(len(steps), "step")
    if hardware.devices * hardware.num_nodes == 1:
        train(module, data, folder, stage)
    else:
        Ranks(node, hardware.devices, data.seed).run(train, module, data, folder, stage)
    return node.rank == 0


def _tell_of_rows(stage: str, unshared: str | None, bound: float) -> None:
    """Say that every response is computed with a prompt of its own, why, and what it costs."""
    if unshared is None:
        log.info(
            "%s: every response has a prompt of its own: prompts are so short that one for all would save a factor of "
            "%.3f at most",
            stage,
            bound,
        )
    else:
        log.info(
            "%s: unshared rows: %.2fx the tokens of shared prompts, because the model has %s", stage, bound, unshared
        )


def train(module: PackedModule, data: StepData, folder: Path, stage: str) -> Mapping[str, Tensor]:
    """One rank's part of it. Returns the policy's weights, whole on the first rank."""
    hardware, steps = data.hardware, len(data.steps())
    hardware.apply_threads()
    if hardware.compile:
        compile_layers(module.policy)
    last = folder / LAST
    ranks = hardware.devices * hardware.num_nodes
    rank = int(os.environ["RANK"]) if ranks > 1 else 0
    bar = rank == 0 and sys.stderr.isatty()
    callbacks: list[Callback] = [RandomStates(rank), Checkpoints(last, hardware.checkpoint_every)]
    if data.snapshots:
        callbacks.append(Snapshots(folder, data.snapshots))
    if hardware.bf16_copy:
        callbacks.append(UseCopies())
    with warnings.catch_warnings():
        _quiet()
        trainer = Trainer(
            accelerator=hardware.accelerator,
            devices=hardware.devices,
            num_nodes=hardware.num_nodes,
            strategy=strategy(hardware),
            plugins=[TorchElasticEnvironment()] if ranks > 1 else None,
            precision=hardware.precision,
            max_epochs=1,  # epochs are inside Steps: an epoch of Lightning's is the whole run
            val_check_interval=max(1, steps // data.optim.validations) if data.optim.validations else None,
            limit_val_batches=1.0 if data.optim.validations and data.validation else 0,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,  # `Checkpoints` does it
            enable_model_summary=False,
            enable_progress_bar=bar,
            callbacks=[*callbacks, StageProgress(stage)] if bar else callbacks,
            default_root_dir=folder,
        )
        if last.exists() and rank == 0:
            log.info("%s: continuing from the checkpoint of an earlier attempt", stage)
        try:
            trainer.fit(module, datamodule=data, ckpt_path=str(last) if last.exists() else None, weights_only=True)
        except SystemExit as stop:
            if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning makes an exit with code 1 of it
                raise KeyboardInterrupt from stop
            raise
    return whole_weights(module.policy)


def compile_layers(policy: nn.Module) -> None:
    """Each decoder layer by torch.compile, for all lengths at once: linears, norms and MLPs, without the attention."""
    end_workers_at_exit()
    for layer in policy.modules():
        if isinstance(layer, GradientCheckpointingLayer):  # what transformers builds every decoder's layers from
            layer.compile(dynamic=True)


def _quiet() -> None:
    """Lightning's notices are about choices made here on purpose."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
