"""The frozen base of QLoRA (arXiv 2305.14314): linear layers in 4 bits, by bitsandbytes.

Weights are quantised on the CPU for every device, so all processes and resumed runs have the same base.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class FourBit:
    """The 4-bit format of weights.

    Attributes:
        quant_type: "nf4", whose levels are quantiles of a normal distribution, or "fp4", 4-bit floats.
        double_quant: True to quantise the scales, too. There is one scale per block of 64 weights.
        compute_dtype: dtype of weights and inputs in a product: "bfloat16" or "float32".
    """

    quant_type: str
    double_quant: bool
    compute_dtype: str

    def layer(self, linear: nn.Linear) -> nn.Module:
        """Return the layer with its weights [out, in] in 4 bits. The bias is unchanged."""
        import bitsandbytes as bnb

        quantised: Any = bnb.nn.Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            compute_dtype=getattr(torch, self.compute_dtype),
            compress_statistics=self.double_quant,
            quant_type=self.quant_type,
            device="meta",
        )
        # On some CPUs, bitsandbytes' fast path repacks the weights permanently in the first forward pass without
        # gradients. Other code cannot read them afterwards.
        quantised.support_avx512bf16_for_cpu = False
        quantised.weight = bnb.nn.Params4bit(
            linear.weight.data.cpu(),
            requires_grad=False,
            compress_statistics=self.double_quant,
            quant_type=self.quant_type,
            module=quantised,
        ).to("cpu")
        quantised.bias = linear.bias
        layer: nn.Module = quantised
        return layer


def quantise(model: Any, weight_format: FourBit) -> None:
    """Quantise every linear layer except the output layer in place, and freeze all parameters."""
    head = model.get_output_embeddings()
    for name, layer in list(model.named_modules()):
        if type(layer) is nn.Linear and layer is not head:
            model.set_submodule(name, weight_format.layer(layer))
    for parameter in model.parameters():
        parameter.requires_grad_(False)


def is_quantised(layer: nn.Module) -> bool:
    """Return True if a layer holds its weights in 4 bits."""
    return getattr(layer.__dict__.get("_parameters", {}).get("weight"), "quant_state", None) is not None


def merge_adapters(policy: Any) -> Any:
    """Merge adapters on a quantised base into a plain model on the CPU: dequantised weights plus updates.

    Weights get the dtype that they had before quantisation. Each sum is rounded to this dtype once.
    """
    from peft.tuners.lora.layer import LoraLayer

    model = policy.get_base_model()
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            base: Any = layer.get_base_layer()
            if is_quantised(base):
                (adapter,) = layer.active_adapters
                model.set_submodule(name, dequantise(base, layer.get_delta_weight(adapter)))
            else:
                layer.merge(safe_merge=True)
                model.set_submodule(name, base)
    for name, layer in list(model.named_modules()):
        if is_quantised(layer):
            model.set_submodule(name, dequantise(layer))
    return model.to("cpu")


def dequantise(layer: Any, update: Tensor | None = None) -> nn.Linear:
    """Return a quantised layer as a plain one, adding an update [out, in] to its weights if given."""
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


def unavailable_reason() -> str | None:
    """Return why bitsandbytes cannot compute in 4 bits on this machine, or None if it can."""
    try:
        layer = FourBit("nf4", True, "float32").layer(nn.Linear(64, 64))
        layer(torch.zeros(1, 64))
    except Exception as error:  # the binary of bitsandbytes is missing, or is for another device
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None
