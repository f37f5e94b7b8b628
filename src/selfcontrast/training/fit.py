"""Train a Lightning module over its steps, and resume exactly where an earlier attempt was killed.

A checkpoint holds weights, optimiser, schedule, random states and the history of metrics. The step number gives the
data's position, because `Steps` is a function of it. On a CPU, resumed weights are bit-equal to an uninterrupted run's.
Checkpoints are written only between steps: in the middle of a step, some of its random numbers are already used.
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
    partial_file,
    snapshot,
)
from selfcontrast.training.hardware import Hardware
from selfcontrast.training.memory import bytes_per_token, gpu_token_budget
from selfcontrast.training.nodes import this_node
from selfcontrast.training.optim import OptimConfig
from selfcontrast.training.packed_module import PackedModule
from selfcontrast.training.ranks import Ranks
from selfcontrast.training.recomputation import checkpoint_layers
from selfcontrast.training.sharding import strategy, whole_weights
from selfcontrast.training.steps import MicroBatch, RemainingSteps, Step, Steps, rank_microbatches
from selfcontrast.training.weight_copies import WeightCopyCallback

log = logging.getLogger(__name__)

LAST = "last.ckpt"


class StepData(LightningDataModule):
    """Groups for training and validation, as steps and micro-batches for this rank.

    Args:
        unshared_reason: why the model cannot share a prompt among responses; None if it can.
    """

    def __init__(
        self,
        groups: list[Group],
        validation: list[Group],
        optim: OptimConfig,
        hardware: Hardware,
        seed: int,
        unshared_reason: str | None = None,
    ) -> None:
        super().__init__()
        self.groups = groups
        self.validation = validation
        self.optim = optim
        self.hardware = hardware
        self.seed = seed
        self.unshared_reason = unshared_reason
        self.snapshots: Sequence[int] = ()  # steps after which the weights are kept
        # Bytes of activations per token; None unless a GPU's memory determines the size of micro-batches.
        self.bytes_per_token: float | None = None
        self._max_tokens_per_microbatch: int | None = None

    def steps(self, rank: int = 0, ranks: int = 1) -> Steps:
        optim, tokens = self.optim, self._max_tokens_per_microbatch or self.hardware.fixed_tokens_per_microbatch()
        per_step, position = optim.batch_size, (rank, ranks)
        may_share = self.unshared_reason is None
        return Steps(self.groups, per_step, optim.epochs, tokens, self.seed, optim.tokens, position, may_share)

    def train_dataloader(self) -> DataLoader[Step]:
        trainer: Any = self.trainer
        if self.bytes_per_token is not None:
            policy = trainer.lightning_module.policy
            tokens = gpu_token_budget(policy, trainer.optimizers, self.hardware, self.bytes_per_token)
            self._max_tokens_per_microbatch = tokens
            if trainer.is_global_zero:
                log.info("hardware.max_tokens_per_microbatch=auto: %d tokens", tokens)
        steps = self.steps(trainer.global_rank, trainer.world_size)
        sampler = RemainingSteps(len(steps), trainer.global_step)
        return DataLoader(steps, batch_size=None, sampler=sampler, generator=torch.Generator())

    def val_dataloader(self) -> DataLoader[MicroBatch]:
        trainer: Any = self.trainer
        tokens = self._max_tokens_per_microbatch or self.hardware.fixed_tokens_per_microbatch()
        rank, ranks = trainer.global_rank, trainer.world_size
        microbatches = rank_microbatches(self.validation, tokens, rank, ranks) if self.validation else []
        # Without its own generator, a loader draws from the global one, which would change training's dropout.
        return DataLoader(microbatches, batch_size=None, generator=torch.Generator())  # type: ignore[arg-type]


def prepare(policy: Any, groups: list[Group], hardware: Hardware) -> None:
    """Prepare a policy for training. With `self_check`, compare one packed group with the ordinary forward pass.

    Raises:
        UserError: if a group has more tokens than the model has positions, or packed results are wrong.
    """
    positions = getattr(policy.config.get_text_config(), "max_position_embeddings", None)
    longest = max(len(group.prompt) + max(map(len, group.responses)) for group in groups)
    if positions is not None and longest > positions:
        raise UserError(
            f"a prompt with its response has {longest} tokens, but the model has {positions} positions. "
            "Lower max_length, or sft.max_length and trainer.max_length."
        )
    use_shared_prompt(policy, hardware.attention)
    if hardware.gradient_checkpointing:
        checkpoint_layers(policy, hardware.gradient_checkpointing)
    if hardware.self_check:
        sharded = hardware.strategy == "fsdp2" and hardware.devices * hardware.num_nodes > 1
        policy.to("cpu" if sharded else hardware.device)  # a sharded model may not fit on one device
        tolerance = 0.2 if _computes_in_bf16(policy) else 1e-3
        use_shared_prompt(policy, _self_check_attention(hardware, sharded))
        self_check(policy, groups[:64], tolerance)
        use_shared_prompt(policy, hardware.attention)
        policy.to("cpu")  # the ranks copy the weights from the CPU
    policy.train()


def _computes_in_bf16(policy: Any) -> bool:
    """Return True if products are in bfloat16, as the weights' dtype or a quantised layer's compute dtype says."""
    return policy.dtype == torch.bfloat16 or any(
        getattr(layer, "compute_dtype", None) == torch.bfloat16 for layer in policy.modules()
    )


def _self_check_attention(hardware: Hardware, sharded: bool) -> str:
    """Return the self-check's attention. The check runs in the weights' dtype; varlen may lack a GPU kernel for it."""
    return hardware.attention if sharded or hardware.device == "cpu" else "masked"


def fit(module: PackedModule, data: StepData, folder: Path, stage: str) -> bool:
    """Train `module` to the end, from the newest checkpoint in `folder` if there is one.

    Return True on the first node, the only one that gets the trained weights.
    """
    hardware = data.hardware
    module.peak_tflops = hardware.peak_tflops
    node = this_node(hardware.num_nodes)
    last = folder / LAST
    for file in (last, *(snapshot(folder, step) for step in data.snapshots)):
        partial_file(file).unlink(missing_ok=True)  # a killed attempt left the file, and its space may be needed
        if file.exists() and (reason := damage(file)):
            log.warning("%s: %s is damaged (%s). Training restarts from the first step.", stage, file, reason)
            last.unlink(missing_ok=True)
    steps = data.steps()
    if not steps.sharing and any(group.negatives for group in data.groups):
        _log_unshared_prompts(stage, data.unshared_reason, steps.bound)
    if hardware.max_tokens_per_microbatch == "auto" and hardware.device == "cuda":
        data.bytes_per_token = bytes_per_token(module.policy, hardware)
    count(len(steps), "step")
    if hardware.devices * hardware.num_nodes == 1:
        train(module, data, folder, stage)
    else:
        Ranks(node, hardware.devices, data.seed).run(train, module, data, folder, stage)
    return node.rank == 0


def _log_unshared_prompts(stage: str, reason: str | None, bound: float) -> None:
    """Log that responses do not share their prompt, why, and the cost."""
    if reason is None:
        log.info(
            "%s: every response has its own copy of the prompt. Prompts are so short that sharing saves at most a "
            "factor of %.3f.",
            stage,
            bound,
        )
    else:
        log.info(
            "%s: prompts are not shared, because the model has %s. That takes %.2fx the tokens of shared prompts.",
            stage,
            reason,
            bound,
        )


def train(module: PackedModule, data: StepData, folder: Path, stage: str) -> Mapping[str, Tensor]:
    """Train on one rank. Return the policy's weights. If they are sharded, only the first rank gets them."""
    hardware, steps = data.hardware, len(data.steps())
    hardware.apply_threads()
    if hardware.compile:
        compile_layers(module.policy)
    last = folder / LAST
    ranks = hardware.devices * hardware.num_nodes
    rank = int(os.environ["RANK"]) if ranks > 1 else 0
    bar = rank == 0 and sys.stderr.isatty()
    callbacks: list[Callback] = [RandomStates(rank), Checkpoints(last, hardware.checkpoint_every, stage)]
    if data.snapshots:
        callbacks.append(Snapshots(folder, data.snapshots))
    if hardware.bf16_copy:
        callbacks.append(WeightCopyCallback())
    with warnings.catch_warnings():
        _silence_lightning()
        trainer = Trainer(
            accelerator=hardware.accelerator,
            devices=hardware.devices,
            num_nodes=hardware.num_nodes,
            strategy=strategy(hardware),
            plugins=[TorchElasticEnvironment()] if ranks > 1 else None,
            precision=hardware.precision,
            max_epochs=1,  # `Steps` contains all epochs
            val_check_interval=max(1, steps // data.optim.validations) if data.optim.validations else None,
            limit_val_batches=1.0 if data.optim.validations and data.validation else 0,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,  # `Checkpoints` writes them
            enable_model_summary=False,
            enable_progress_bar=bar,
            callbacks=[*callbacks, StageProgress(stage)] if bar else callbacks,
            default_root_dir=folder,
        )
        try:
            trainer.fit(module, datamodule=data, ckpt_path=str(last) if last.exists() else None, weights_only=True)
        except SystemExit as stop:
            if isinstance(stop.__context__, KeyboardInterrupt):  # on Ctrl-C, Lightning exits with code 1
                raise KeyboardInterrupt from stop
            raise
    return whole_weights(module.policy)


def compile_layers(policy: nn.Module) -> None:
    """Compile the linear layers, norms and MLP of each decoder layer, but not attention, once for all lengths."""
    end_workers_at_exit()
    for layer in policy.modules():
        if isinstance(layer, GradientCheckpointingLayer):  # the base of every decoder layer in transformers
            layer.compile(dynamic=True)


def _silence_lightning() -> None:
    """Hide Lightning's notices about deliberate choices of `train`."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
