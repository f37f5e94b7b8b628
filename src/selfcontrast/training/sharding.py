"""Several ranks' strategies: replicas (DDP) or shards (FSDP2) of the policy."""

from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from selfcontrast.training.recipe import Hardware


def strategy(hardware: Hardware) -> Any:
    """Lightning's strategy for these devices. Checkpoints are one file, whichever it is."""
    ranks = hardware.devices * hardware.num_nodes
    if ranks == 1:
        return "auto"
    if hardware.strategy == "fsdp2":
        return ModelParallelStrategy(
            data_parallel_size=ranks, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    return DDPStrategy(gradient_as_bucket_view=True)


def shard(module: nn.Module, policy: Any, mesh: Any, forward: str) -> None:
    """Shards a policy's parameters over a mesh, layer by layer, and the rest with `module`.

    Args:
        module: the whole that is trained.
        policy: a causal model of transformers inside it.
        forward: the method of `module` that runs the policy: parameters are gathered for it, outside of it sharded.
    """
    for part in policy.modules():
        if type(part).__name__ in policy._no_split_modules:  # transformers' word for a layer
            fully_shard(part, mesh=mesh)
    fully_shard(module, mesh=mesh)
    register_fsdp_forward_method(module, forward)


def whole_weights(policy: nn.Module) -> Mapping[str, Tensor]:
    """The state dict of a policy; where its parameters are sharded, gathered on the first rank and empty on others."""
    if not dist.is_initialized():
        return policy.state_dict()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: Any = get_model_state_dict(policy, options=options)
    return dict(weights)
