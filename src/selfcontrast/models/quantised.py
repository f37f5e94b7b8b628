"""The frozen base of QLoRA (arXiv 2305.14314): a model's linear layers in 4 bits, by bitsandbytes.

Weights are quantised on the CPU, whatever device they go to: the same base in every process and after every resume.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class FourBit:
    """How weights are stored and computed with.

    Attributes:
        quant_type: "nf4", whose levels are the quantiles of a normal distribution, or "fp4", small floats.
        double_quant: whether the scales of the blocks, one of 64 weights each, are quantised too.
        compute_dtype: the type that weights and inputs have in a product: "bfloat16" or "float32".
    """

    quant_type: str
    double_quant: bool
    compute_dtype: str

    def layer(self, linear: nn.Linear) -> nn.Module:
        """The same layer with its weights [out, in] in 4 bits. Its bias stays what it is."""
        import bitsandbytes as bnb

        made: Any = bnb.nn.Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            compute_dtype=getattr(torch, self.compute_dtype),
            compress_statistics=self.double_quant,
            quant_type=self.quant_type,
            device="meta",
        )
        # Its fast way on some CPUs packs the weights anew at the first pass without gradients, for good: nothing else
        # can then read them.
        made.support_avx512bf16_for_cpu = False
        made.weight = bnb.nn.Params4bit(
            linear.weight.data.cpu(),
            requires_grad=False,
            compress_statistics=self.double_quant,
            quant_type=self.quant_type,
            module=made,
        ).to("cpu")
        made.bias = linear.bias
        layer: nn.Module = made
        return layer


def quantise(model: Any, how: FourBit) -> None:
    """Put every linear layer but the output layer into 4 bits, in place."""
    head = model.get_output_embeddings()
    for name, layer in list(model.named_modules()):
        if type(layer) is nn.Linear and layer is not head:
            model.set_submodule(name, how.layer(layer))
    for parameter in model.parameters():
        parameter.requires_grad_(False)


def is_quantised(layer: nn.Module) -> bool:
    """Whether a layer holds its weights in 4 bits."""
    return getattr(layer.__dict__.get("_parameters", {}).get("weight"), "quant_state", None) is not None


def merged(policy: Any) -> Any:
    """The plain model that adapters on a quantised base compute: dequantised weights plus updates, on the CPU.

    Weights have the type that they were quantised from. A sum is rounded to it once.
    """
    from peft.tuners.lora.layer import LoraLayer

    model = policy.get_base_model()
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            base: Any = layer.get_base_layer()
            if is_quantised(base):
                (adapter,) = layer.active_adapters
                model.set_submodule(name, plain(base, layer.get_delta_weight(adapter)))
            else:
                layer.merge(safe_merge=True)
                model.set_submodule(name, base)
    for name, layer in list(model.named_modules()):
        if is_quantised(layer):
            model.set_submodule(name, plain(layer))
    return model.to("cpu")


def plain(layer: Any, update: Tensor | None = None) -> nn.Linear:
    """A quantised layer as an ordinary one, with an update [out, in] of its weights where there is one."""
    from bitsandbytes.functional import dequantize_4bit

    state = layer.weight.quant_state
    weight: Tensor = dequantize_4bit(layer.weight.data, state)
    if update is not None:
        weight = (weight.float() + update.detach().float()).to(state.dtype)
    linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.cpu())
    if layer.bias is not None:
        linear.bias = nn.Parameter(layer.bias.detach().to(state.dtype).cpu())
    return linear


def fault() -> str | None:
    """Why this machine's bitsandbytes cannot compute in 4 bits; None where it can."""
    try:
        layer = FourBit("nf4", True, "float32").layer(nn.Linear(64, 64))
        layer(torch.zeros(1, 64))
    except Exception as error:  # of a binary that is missing, or of another device
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None
