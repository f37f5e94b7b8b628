"""Compute how many tokens of a micro-batch fit into a GPU's free memory (`hardware.max_tokens_per_microbatch=auto`).

Before training, two small forward passes on the policy's current device count the bytes per token. Free memory is read
after the weights, and the optimiser's moments of an earlier attempt, have been moved to the GPU.
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

FRACTION = 0.8  # use only this part of the free memory: allocators leave gaps, and lengths differ
MIN_TOKENS, MAX_TOKENS = 1024, 65536  # bounds of the result; no GPU run has measured a better upper bound
PROBES = (16, 32)  # both passes have one prompt and two responses; each of the three has this many tokens


def bytes_per_token(policy: Any, hardware: Hardware) -> float:
    """Return the bytes per token that a forward pass holds until its backward pass, with this gradient checkpointing.

    Without checkpointing these are all tensors that autograd saves, plus one layer's share for the current gradients.
    With it, they are each layer's input, one layer's activations, and the results that selective checkpointing keeps.
    """
    policy.gradient_checkpointing_disable()
    (saved, kept), longer = (_count_bytes(policy, hardware, tokens) for tokens in PROBES)
    if hardware.gradient_checkpointing:
        checkpoint_layers(policy, hardware.gradient_checkpointing)
    tokens = 3 * (PROBES[1] - PROBES[0])
    saved, kept = (longer[0] - saved) / tokens, (longer[1] - kept) / tokens
    config = policy.config.get_text_config()
    layers, width = int(config.num_hidden_layers), int(config.hidden_size)
    layer = saved / layers
    if not hardware.gradient_checkpointing:
        return saved + layer
    inputs = float(layers * width * policy.dtype.itemsize)
    return inputs + layer + (kept if hardware.gradient_checkpointing == "selective" else 0)


def _count_bytes(policy: Any, hardware: Hardware, tokens: int) -> tuple[float, float]:
    """Return the bytes that autograd saves in a forward pass of 3 x `tokens`, and those that "selective" would keep."""
    storages: dict[int, int] = {}

    def record(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        alive.append(x)
        return x

    alive: list[Tensor] = []  # no address is reused while its tensor lives
    ids = [0] * tokens
    packed = pack([Group("probe", ids, ids, [ids])]).to(policy.device)
    width = widest_kept(policy.config)
    devices = [policy.device] if policy.device.type == "cuda" else []
    hooks = torch.autograd.graph.saved_tensors_hooks(record, lambda x: x)
    autocast = torch.autocast(policy.device.type, torch.bfloat16, enabled=hardware.precision == "bf16-mixed")
    with torch.random.fork_rng(devices), autocast, hooks, _KeptBytes(width) as kept:
        response_log_probs(policy, packed, hardware.logits_chunk)
    return float(sum(storages.values())), float(kept.bytes)


class _KeptBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sum the bytes of the results that selective checkpointing would keep."""

    def __init__(self, width: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.width = width
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        if is_kept(self.width, function, args):
            results = output if isinstance(output, tuple) else (output,)
            self.bytes += sum(x.nbytes for x in results if isinstance(x, Tensor))
        return output


def token_budget(free: int, reserved: int, per_token: float) -> int:
    """Return how many tokens of a micro-batch fit into `free - reserved` bytes, a multiple of `MIN_TOKENS`."""
    tokens = int(FRACTION * (free - reserved) / per_token)
    return max(MIN_TOKENS, min(MAX_TOKENS, tokens // MIN_TOKENS * MIN_TOKENS))


def reserved_bytes(policy: Any, optimizers: Iterable[torch.optim.Optimizer], hardware: Hardware) -> int:
    """Return the bytes that any micro-batches need: gradients, moments that do not exist yet, casts and logits."""
    trained = sum(_local_part(p).nbytes for p in policy.parameters() if p.requires_grad)
    moments = 0 if any(optimizer.state for optimizer in optimizers) else 2 * trained
    head = policy.get_output_embeddings().weight
    # Logits in float32 and their rounded gradient (8 bytes), and casts of the output layer (6 bytes).
    logits = hardware.logits_chunk * head.shape[0] * 8 + head.numel() * 6
    cast = hardware.precision == "bf16-mixed" and not hardware.bf16_copy
    casts = sum(2 * _local_part(m.weight).numel() for m in policy.modules() if isinstance(m, nn.Linear)) if cast else 0
    return int(trained + moments + logits + casts)


def _local_part(parameter: Any) -> Tensor:
    """Return this rank's part of a parameter."""
    part: Tensor = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return part


def gpu_token_budget(
    policy: Any, optimizers: Iterable[torch.optim.Optimizer], hardware: Hardware, per_token: float
) -> int:
    """Return the tokens of a micro-batch on this GPU. All ranks use the minimum over ranks."""
    device = torch.device("cuda", torch.cuda.current_device())
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + unused
    tokens = torch.tensor(token_budget(free, reserved_bytes(policy, optimizers, hardware), per_token), device=device)
    if dist.is_initialized():
        dist.all_reduce(tokens, dist.ReduceOp.MIN)
    return int(tokens)
