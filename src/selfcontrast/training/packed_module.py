"""The base of supervised fine-tuning and K-negative DPO: a Lightning module whose batch is a whole optimiser step.

Optimisation is manual, so that the mean over a step is exact for any split into micro-batches and ranks. Each
micro-batch adds the *sum* of its losses, divided by the step's total over all ranks. Lightning's automatic accumulation
takes a mean of means, which differs for unequal micro-batches.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from selfcontrast.errors import UserError
from selfcontrast.training.costs import Cost, peak_memory
from selfcontrast.training.optim import OptimConfig
from selfcontrast.training.sharding import is_frozen, shard
from selfcontrast.training.steps import MicroBatch, Step

Sums = dict[str, Tensor]  # per metric [2]: a sum, and the number of its terms
Record = dict[str, float]


class PackedModule(LightningModule, ABC):
    """Train `policy` on steps of packed groups.

    Subclasses define `losses()`, and `total()`, the divisor of a step's summed loss.

    Args:
        policy: a transformers causal model prepared by `use_shared_prompt`.
        optim: optimisation settings.
        total_steps: steps of the whole run, for the learning rate's schedule.
        chunk_size: number of response tokens whose logits are in memory at a time.
        report: called with each new record of metrics.
    """

    def __init__(
        self,
        policy: Any,
        optim: OptimConfig,
        total_steps: int,
        chunk_size: int,
        report: Callable[[Record], None],
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.policy = policy
        self.optim = optim
        self.total_steps = total_steps
        self.chunk_size = chunk_size
        self.report = report
        self.peak_tflops: float | None = None  # peak of one device, for MFU; None records no MFU
        self.cost = Cost.of(policy)
        self.weights: Mapping[str, Tensor] | None = None  # the policy's weights, if the policy is a skeleton to shard
        self.history: list[Record] = []
        self._validation: list[Sums] = []
        self._last_time = time.perf_counter()

    def configure_model(self) -> None:
        """Shard the policy if the strategy shards."""
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            mesh, bf16 = self.device_mesh["data_parallel"], self.trainer.precision == "bf16-mixed"
            device = self.trainer.strategy.root_device
            shard(self, self.policy, mesh, "losses", bf16, device, self.weights)
            self.weights = None

    @abstractmethod
    def losses(self, microbatch: MicroBatch) -> tuple[Tensor, Sums]:
        """Return the loss per group [B] and the sums of metrics. Every micro-batch must have the same metrics."""

    @abstractmethod
    def total(self, step: Step) -> int:
        """Return the divisor of a step's summed loss, over all ranks."""

    def training_step(self, step: Step, index: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        sums: list[Sums] = []
        group_losses: list[tuple[tuple[str, ...], Tensor]] = []
        for number, microbatch in enumerate(step.microbatches, start=1):
            with self._sync(last=number == len(step.microbatches)):
                loss, metrics = self.losses(microbatch)
                scaled = loss.sum() * (self.trainer.world_size / self.total(step))
                self.manual_backward(scaled if microbatch.counts else scaled * 0.0)
            sums.append(_zero_if_filler(metrics, microbatch))
            if microbatch.counts:
                group_losses.append((microbatch.packed.ids, loss.detach()))
        norm = torch.nn.utils.clip_grad_norm_(self.parameters(), self.optim.max_grad_norm)
        # The host waits for the GPU only here, so that it can prepare the next step during this step's update.
        means, grad_norm = self._means(sums), _norm_value(norm)
        if not math.isfinite(grad_norm):
            self._stop_on_nan(group_losses)
        extra_metrics = self.extra_metrics()
        optimizer.step()
        scheduler: Any = self.lr_schedulers()
        lr = scheduler.get_last_lr()[0]
        scheduler.step()
        self._record(step, {**means, "grad_norm": grad_norm, "lr": lr, **extra_metrics})

    def extra_metrics(self) -> Record:
        """Return further metrics of this step. Called before the update."""
        return {}

    def validation_step(self, microbatch: MicroBatch, index: int) -> None:
        self._validation.append(_zero_if_filler(self.losses(microbatch)[1], microbatch))

    def on_validation_epoch_end(self) -> None:
        means = self._means(self._validation)
        self._validation = []
        if not self.trainer.sanity_checking:
            self._log({f"val_{name}": value for name, value in means.items()})

    def on_train_start(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self._last_time = time.perf_counter()

    def configure_optimizers(self) -> Any:
        """Return AdamW with weight decay on matrices only, and the learning rate's schedule per step."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.optim.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = adamw([group for group in groups if group["params"]], self.optim)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.optim.lr_factor(step, self.total_steps)
        )
        return [optimizer], [schedule]

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        def move(microbatch: MicroBatch) -> MicroBatch:
            return MicroBatch(microbatch.packed.to(device), microbatch.counts)

        if isinstance(batch, Step):
            return Step([move(microbatch) for microbatch in batch.microbatches], batch.groups, batch.target_tokens)
        return move(batch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remove frozen weights: the next attempt loads them with the model."""
        frozen = set(self._frozen())
        for name in list(checkpoint["state_dict"]):
            if is_frozen(name, frozen):
                del checkpoint["state_dict"][name]
        checkpoint["history"] = self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.strict_loading = not self._frozen()
        self.history = checkpoint["history"]
        if self.trainer.is_global_zero:  # the tracker may be new, or may lack the last records
            for record in self.history:
                self.report(record)

    def _frozen(self) -> list[str]:
        return [name for name, p in self.named_parameters(remove_duplicate=False) if not p.requires_grad]

    def _sync(self, last: bool) -> AbstractContextManager[Any]:
        """Exchange gradients between ranks in the last micro-batch of a step only."""
        strategy: Any = self.trainer.strategy
        if isinstance(self, FSDPModule):
            self.set_requires_gradient_sync(last)
        if last or not isinstance(strategy, DDPStrategy):
            return nullcontext()
        no_sync: AbstractContextManager[Any] = strategy.block_backward_sync()
        return no_sync

    def _record(self, step: Step, metrics: Record) -> None:
        """Log a step after its losses were read. Its time begins when the previous step's losses were read."""
        batches = [microbatch.packed for microbatch in step.microbatches if microbatch.counts]
        flops = float(sum(self.cost.flops(packed) for packed in batches))
        now = time.perf_counter()
        seconds, self._last_time = now - self._last_time, now
        costs = {
            "tokens_per_second": sum(p.input_ids.numel() for p in batches) * self.trainer.world_size / seconds,
            "prompts_per_second": step.groups / seconds,
            "tflops": flops / seconds / 1e12,  # on this device
            "peak_memory_gib": peak_memory(self.device),
        }
        if self.peak_tflops is not None:
            costs["mfu"] = costs["tflops"] / self.peak_tflops
        self._log({**metrics, **costs})

    def _log(self, record: Record) -> None:
        record = {"step": self.trainer.global_step, **record}
        self.history.append(record)
        if self.trainer.is_global_zero:
            self.report(record)

    def _means(self, sums: Iterable[Sums]) -> Record:
        """Return each metric's sum divided by its count, over all micro-batches and ranks. Omit counts of 0."""
        parts = list(sums)
        names = list(parts[0])
        total = torch.stack([torch.stack([part[name] for name in names]) for part in parts]).sum(0)
        if self.trainer.world_size > 1:
            total = self.trainer.strategy.reduce(total, reduce_op="sum")
        return {name: value / count for name, (value, count) in zip(names, total.tolist(), strict=True) if count}

    def _stop_on_nan(self, group_losses: list[tuple[tuple[str, ...], Tensor]]) -> None:
        bad_groups = [
            name
            for ids, loss in group_losses
            for name, value in zip(ids, loss.tolist(), strict=True)
            if not math.isfinite(value)
        ]
        if dist.is_initialized():  # so that every rank names the same groups
            gathered: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, bad_groups)
            bad_groups = [name for names in gathered for name in names]
        names = ", ".join(bad_groups[:5])
        culprit = f"the loss of {names}" if bad_groups else "the gradient, though every loss is finite,"
        raise UserError(
            f"training stopped at step {self.trainer.global_step}: {culprit} is NaN or infinite. "
            "The last checkpoint is kept. Lower the learning rate, or inspect those examples."
        )


def adamw(groups: list[dict[str, Any]], optim: OptimConfig) -> torch.optim.Optimizer:
    """Return AdamW over parameter groups, with moments in 32 bits or in block-wise 8 bits (arXiv 2110.02861).

    bitsandbytes keeps the moments of tensors with fewer than 4096 elements in 32 bits.
    """
    first, second = optim.betas
    if optim.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=optim.lr, betas=(first, second), fused=True)
    from bitsandbytes.optim import AdamW8bit

    optimizer: torch.optim.Optimizer = AdamW8bit(groups, lr=optim.lr, betas=(first, second))
    return optimizer


def _zero_if_filler(metrics: Sums, microbatch: MicroBatch) -> Sums:
    """Return the metrics; zeros for a filler, because every rank must contribute a tensor to the sum."""
    return metrics if microbatch.counts else {name: torch.zeros_like(value) for name, value in metrics.items()}


def _norm_value(norm: Tensor) -> float:
    """Return the norm as a number. Gather it if the parameters are sharded."""
    full = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return float(full.item())
