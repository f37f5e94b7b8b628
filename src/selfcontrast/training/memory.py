"""How many tokens a pass may have on a GPU, from the memory that is free: `hardware.max_tokens_per_microbatch=auto`.

What a token takes is counted in two small forward passes, before training, on whatever device the policy is on. What is
free is asked for once weights, and an earlier attempt's moments, are on the GPU.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from selfcontrast.models.log_probs import response_log_probs
from selfcontrast.models.packing import Group, pack
from selfcontrast.training.hardware import Hardware
from selfcontrast.training.recomputation import checkpoint_layers, is_kept, widest_kept

FRACTION = 0.8  # of what is left; allocators leave gaps, and lengths differ
LEAST, MOST = 1024, 65536  # tokens; beyond some 16,384 a pass is hardly faster per token
PROBES = (16, 32)  # tokens of prompt and responses, three of them


def bytes_per_token(policy: Any, hardware: Hardware) -> float:
    """Bytes that one more token of a pass takes until its backward pass, as `hardware` checkpoints layers.

    Without checkpointing: all that autograd saves, and one layer more for the gradients under way. With it: each
    layer's input, one layer's activations, and the results that selective checkpointing keeps.
    """
    policy.gradient_checkpointing_disable()
    (saved, kept), more = (_counted(policy, hardware, tokens) for tokens in PROBES)
    if hardware.gradient_checkpointing:
        checkpoint_layers(policy, hardware.gradient_checkpointing)
    tokens = 3 * (PROBES[1] - PROBES[0])
    saved, kept = (more[0] - saved) / tokens, (more[1] - kept) / tokens
    config = policy.config.get_text_config()
    layers, width = int(config.num_hidden_layers), int(config.hidden_size)
    layer = saved / layers
    if not hardware.gradient_checkpointing:
        return saved + layer
    inputs = float(layers * width * policy.dtype.itemsize)
    return inputs + layer + (kept if hardware.gradient_checkpointing == "selective" else 0)


def _counted(policy: Any, hardware: Hardware, tokens: int) -> tuple[float, float]:
    """Bytes saved by autograd in a pass of three times `tokens`, and bytes of results that could be kept."""
    storages: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        alive.append(x)
        return x

    alive: list[Tensor] = []  # so that no two have one address
    part = [0] * tokens
    packed = pack([Group("probe", part, part, [part])]).to(policy.device)
    width = widest_kept(policy.config)
    devices = [policy.device] if policy.device.type == "cuda" else []
    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda x: x)
    autocast = torch.autocast(policy.device.type, torch.bfloat16, enabled=hardware.precision == "bf16-mixed")
    with torch.random.fork_rng(devices), autocast, hooks, _Kept(width) as kept:
        response_log_probs(policy, packed, hardware.logits_chunk)
    return float(sum(storages.values())), float(kept.bytes)


class _Kept(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the results that selective checkpointing would keep."""

    def __init__(self, width: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.width = width
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        if is_kept(self.width, function, args):
            results = found if isinstance(found, tuple) else (found,)
            self.bytes += sum(x.nbytes for x in results if isinstance(x, Tensor))
        return found


def tokens_that_fit(free: int, reserved: int, per_token: float) -> int:
    """Tokens of a pass, a multiple of `LEAST`, for these bytes."""
    tokens = int(FRACTION * (free - reserved) / per_token)
    return max(LEAST, min(MOST, tokens // LEAST * LEAST))


def still_to_come(policy: Any, optimizers: Iterable[torch.optim.Optimizer], hardware: Hardware) -> int:
    """Bytes that a step takes whatever its passes: gradients, moments that are not there yet, casts and logits."""
    trained = sum(_own(p).nbytes for p in policy.parameters() if p.requires_grad)
    moments = 0 if any(optimizer.state for optimizer in optimizers) else 2 * trained
    head = policy.get_output_embeddings().weight
    logits = hardware.logits_chunk * head.shape[0] * 8 + head.numel() * 6  # float32 and a rounded slope; its casts
    cast = hardware.precision == "bf16-mixed" and not hardware.bf16_copy
    casts = sum(2 * _own(m.weight).numel() for m in policy.modules() if isinstance(m, nn.Linear)) if cast else 0
    return int(trained + moments + logits + casts)


def _own(parameter: Any) -> Tensor:
    """This rank's part of a parameter."""
    part: Tensor = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return part


def fitting_pass(policy: Any, optimizers: Iterable[torch.optim.Optimizer], hardware: Hardware, per_token: float) -> int:
    """Tokens of a pass on this GPU; on several the least of them all, because ranks must make equally many passes."""
    device = torch.device("cuda", torch.cuda.current_device())
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + unused
    tokens = torch.tensor(tokens_that_fit(free, still_to_come(policy, optimizers, hardware), per_token), device=device)
    if dist.is_initialized():
        dist.all_reduce(tokens, dist.ReduceOp.MIN)
    return int(tokens)
