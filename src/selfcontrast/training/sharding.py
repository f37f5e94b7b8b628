"""Strategies for several ranks: replicas (DDP) or shards (FSDP2) of the policy."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from selfcontrast.training.hardware import Hardware


def strategy(hardware: Hardware) -> Any:
    """Return Lightning's strategy for these devices. Every strategy writes checkpoints as one file."""
    ranks = hardware.devices * hardware.num_nodes
    if ranks == 1:
        return "auto"
    if hardware.strategy == "fsdp2":
        return ModelParallelStrategy(
            data_parallel_size=ranks, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    return DDPStrategy(gradient_as_bucket_view=True)


def skeleton(policy: nn.Module) -> nn.Module:
    """Return a copy of the policy on the meta device, for a rank that will hold a shard of it."""
    empty = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in policy.parameters()
    }
    return copy.deepcopy(policy, memo=dict(empty))


def shard(
    module: nn.Module,
    policy: Any,
    mesh: Any,
    forward: str,
    bf16: bool,
    device: torch.device,
    weights: Mapping[str, Tensor] | None,
) -> None:
    """Shard a policy's parameters over a mesh, layer by layer, and the remaining parameters of `module`.

    With bf16 the layers' matrices are gathered in bfloat16, and their gradients are summed in float32. Norms and inputs
    stay in float32, as under autocast on one device.

    Args:
        module: the module to train.
        policy: the transformers causal model inside it, or its `skeleton`.
        forward: the method of `module` that runs the policy. Parameters are gathered only inside it.
        device: this rank's device.
        weights: the whole weights on the CPU, if the policy is a skeleton. Each rank copies its shard.
    """
    bf16_cast = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for part in list(policy.modules()):
        if type(part).__name__ in policy._no_split_modules:  # transformers' names of layer classes
            if bf16:
                fully_shard([m for m in part.children() if _has_matrices(m)], mesh=mesh, mp_policy=bf16_cast)
            fully_shard(part, mesh=mesh)
    fully_shard(module, mesh=mesh)
    register_fsdp_forward_method(module, forward)
    if weights is not None:
        module._apply(  # type: ignore[no-untyped-call]
            lambda x: torch.empty_like(x, device=device) if x.is_meta else x.to(device)
        )
        _copy_local_shards(policy, weights)


@torch.no_grad()
def _copy_local_shards(policy: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy this rank's rows of each weight. (torch's `set_model_state_dict` would hold every shard twice.)"""
    for name, value in policy.state_dict().items():
        if isinstance(value, DTensor):  # `fully_shard` splits the first dimension as `chunk` does
            rows = weights[name].chunk(value.device_mesh.size())
            rank = value.device_mesh.get_local_rank()
            if rank < len(rows):
                value.to_local().copy_(rows[rank])
        else:
            value.copy_(weights[name])


def _has_matrices(module: nn.Module) -> bool:
    return any(p.ndim >= 2 for p in module.parameters())


def whole_weights(policy: nn.Module) -> Mapping[str, Tensor]:
    """Return a policy's state dict. If it is sharded, only the first rank gets it; other ranks get an empty dict."""
    if not dist.is_initialized():
        return policy.state_dict()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: Any = get_model_state_dict(policy, options=options)
    return dict(weights)


def is_frozen(name: str, frozen: set[str]) -> bool:
    """Return True if a state-dict entry is a frozen weight or its quantisation state (such as "….weight.absmax")."""
    while name:
        if name in frozen:
            return True
        name = name.rpartition(".")[0]
    return False
