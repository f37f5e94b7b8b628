"""Choose the trained parameters: all weights, or adapters beside frozen weights (LoRA, arXiv 2106.09685).

A new adapter does not change the model's output, so the model without the adapter is the reference of preference
training. No second model is in memory. After training the adapters are merged into the weights, so a policy folder
loads without peft.
"""

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import Field

from selfcontrast.constrained import BelowOne, Count, Positive, Text, check_numbers
from selfcontrast.errors import UserError
from selfcontrast.models.loading import FromScratch, Model
from selfcontrast.store import NOT_IN_KEY

STAGES = ("sft", "align")


class Adapter(Protocol):
    """Select and prepare the parameters that a stage trains.

    Attributes:
        quantised: True if the frozen model differs from the loaded one and must be its own reference.
    """

    @property
    def quantised(self) -> bool: ...

    def at(self, stage: str) -> "Adapter":
        """Return the adapter to use in this stage."""

    def check(self, model: Model) -> None:
        """Raise `UserError` for mistakes that can be found before any compute."""

    def wrap(self, policy: Any, seed: int) -> Any:
        """Return the model to train instead of `policy`. It holds the same weights."""

    def merge(self, policy: Any) -> Any:
        """Merge a wrapped model into a plain one, in place."""


@dataclass(frozen=True)
class NoAdapter:
    """Train all weights."""

    quantised: ClassVar[bool] = False

    def at(self, stage: str) -> Adapter:
        return self

    def check(self, model: Model) -> None: ...

    def wrap(self, policy: Any, seed: int) -> Any:
        return policy

    def merge(self, policy: Any) -> Any:
        return policy


@dataclass(frozen=True)
class LoRA:
    """Replace W x by W x + (alpha / rank) B A x, and train only A [rank, in] and B [out, rank].

    Attributes:
        rank: rank of A and B.
        alpha: scale of the update; it is divided by the rank.
        dropout: applied to the input of A in training.
        target_modules: the linear layers W, by the last parts of their names. "all-linear" is all of them except the
            output layer, because log-probabilities are computed from its plain weights.
        stages: the stages that train adapters only.
    """

    rank: Annotated[Count, Field(le=1_000_000)]
    alpha: Positive
    dropout: BelowOne
    target_modules: Literal["all-linear"] | list[Text]
    stages: list[str] = field(metadata=NOT_IN_KEY)  # the key has the adapter that `at` returns

    quantised: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_numbers(self, "adapter")
        if not self.target_modules:
            raise UserError("adapter.target_modules=[] is empty. Name linear layers, or use all-linear.")
        if not self.stages or set(self.stages) - set(STAGES):
            raise UserError(f"adapter.stages={self.stages} is invalid. Give one or both of {', '.join(STAGES)}.")

    def at(self, stage: str) -> Adapter:
        return self if stage in self.stages else NoAdapter()

    def check(self, model: Model) -> None:
        if find_spec("peft") is None:
            raise UserError("adapter=lora needs peft. Install it (pip install -e '.[peft]') or use adapter=none.")
        if "sft" in self.stages and isinstance(model, FromScratch):
            raise UserError(
                f"adapter.stages={self.stages}: a model with random weights cannot be fine-tuned by adapters alone. "
                "Use adapter.stages=[align]."
            )
        if self.target_modules != "all-linear":
            self._check_names(model.skeleton())

    def _check_names(self, skeleton: Any) -> None:
        """Check that every name matches a layer. peft only requires one match in total."""
        from torch import nn
        from transformers.pytorch_utils import Conv1D

        head = skeleton.get_output_embeddings()
        layers = {name: m for name, m in skeleton.named_modules() if isinstance(m, nn.Linear | Conv1D)}
        known = sorted({name.rsplit(".", 1)[-1] for name, layer in layers.items() if layer is not head})
        for target in self.target_modules:
            matches = [layer for name, layer in layers.items() if f".{name}".endswith(f".{target}")]
            if not matches or head in matches:
                fault = "the output layer" if matches else f"no linear layer of a {skeleton.config.model_type}"
                raise UserError(f"adapter.target_modules: {target} is {fault}. Choose from {', '.join(known)}.")

    def wrap(self, policy: Any, seed: int) -> Any:
        import torch
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.target_modules,
            # GPT-2's linear layers are stored transposed. Without this, peft warns.
            fan_in_fan_out=policy.config.model_type == "gpt2",
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return get_peft_model(policy, config)

    def merge(self, policy: Any) -> Any:
        return policy.merge_and_unload(safe_merge=True)


@dataclass(frozen=True)
class QLoRA(LoRA):
    """LoRA on a 4-bit base (arXiv 2305.14314). Merging adds the update to the dequantised base.

    Attributes:
        quant_type, double_quant, compute_dtype: see `quantised.FourBit`.
    """

    quant_type: Literal["nf4", "fp4"]
    double_quant: bool
    compute_dtype: Literal["bfloat16", "float32"]

    quantised: ClassVar[bool] = True

    def check(self, model: Model) -> None:
        for package, extra in (("peft", "peft"), ("bitsandbytes", "8bit")):
            if find_spec(package) is None:
                raise UserError(
                    f"adapter=qlora needs {package}. Install it (pip install -e '.[{extra}]') or use adapter=lora."
                )
        super().check(model)
        from selfcontrast.models.quantised import unavailable_reason

        if reason := unavailable_reason():
            raise UserError(
                f"adapter=qlora: bitsandbytes cannot compute in 4 bits on this machine ({reason}). Use adapter=lora."
            )

    def wrap(self, policy: Any, seed: int) -> Any:
        from selfcontrast.models.quantised import FourBit, quantise

        quantise(policy, FourBit(self.quant_type, self.double_quant, self.compute_dtype))
        policy.is_loaded_in_4bit = True  # the attribute that peft reads
        try:
            return super().wrap(policy, seed)
        finally:
            del policy.is_loaded_in_4bit

    def merge(self, policy: Any) -> Any:
        from selfcontrast.models.quantised import merge_adapters

        return merge_adapters(policy)
