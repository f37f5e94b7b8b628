"""What of a model is trained: all of its weights, or adapters beside frozen ones (LoRA, arXiv 2106.09685).

An adapter starts at nothing: the wrapped model computes what the model did, so the model itself is the reference of
preference training, and no second one is held. When training ends the adapters are merged into the weights, so that
a policy folder is an ordinary one and loads without peft.
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
    """What of a model a stage trains.

    Attributes:
        quantised: whether the model below it is another one than was loaded, which has to be its own reference.
    """

    @property
    def quantised(self) -> bool: ...

    def at(self, stage: str) -> "Adapter":
        """What is trained in this stage."""

    def check(self, model: Model) -> None:
        """Raises `UserError` for what can be known before any compute."""

    def wrap(self, policy: Any, seed: int) -> Any:
        """The model that is trained in the place of `policy`, whose weights it holds."""

    def merge(self, policy: Any) -> Any:
        """The plain model that a wrapped one computes, in the same memory."""


@dataclass(frozen=True)
class NoAdapter:
    """All weights are trained."""

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
    """W x + (alpha / rank) B A x in the place of W x, of which A [rank, in] and B [out, rank] are trained.

    Attributes:
        rank: of A and B.
        alpha: the update's scale, divided by the rank.
        dropout: of x on its way into A, in training.
        target_modules: the linear layers W, by the last parts of their names; all-linear is every one of them but
            the output layer, whose log-probabilities are taken from its plain weights.
        stages: the trainings that train adapters alone.
    """

    rank: Annotated[Count, Field(le=1_000_000)]
    alpha: Positive
    dropout: BelowOne
    target_modules: Literal["all-linear"] | list[Text]
    stages: list[str] = field(metadata=NOT_IN_KEY)  # `at` has decided by then

    quantised: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_numbers(self, "adapter")
        if not self.target_modules:
            raise UserError("adapter.target_modules=[]: names of linear layers, or all-linear")
        if not self.stages or set(self.stages) - set(STAGES):
            raise UserError(f"adapter.stages={self.stages}: one or both of {', '.join(STAGES)}")

    def at(self, stage: str) -> Adapter:
        return self if stage in self.stages else NoAdapter()

    def check(self, model: Model) -> None:
        if find_spec("peft") is None:
            raise UserError("adapter=lora needs peft: pip install -e '.[peft]', or use adapter=none")
        if "sft" in self.stages and isinstance(model, FromScratch):
            raise UserError(
                f"adapter.stages={self.stages}: a model of random weights cannot be fine-tuned by adapters alone; "
                "use adapter.stages=[align]"
            )
        if self.target_modules != "all-linear":
            self._check_names(model.skeleton())

    def _check_names(self, skeleton: Any) -> None:
        """Each name must be that of a layer: peft is content if one of them is."""
        from torch import nn
        from transformers.pytorch_utils import Conv1D

        head = skeleton.get_output_embeddings()
        layers = {name: m for name, m in skeleton.named_modules() if isinstance(m, nn.Linear | Conv1D)}
        known = sorted({name.rsplit(".", 1)[-1] for name, layer in layers.items() if layer is not head})
        for target in self.target_modules:
            meant = [layer for name, layer in layers.items() if f".{name}".endswith(f".{target}")]
            if not meant or head in meant:
                what = "the output layer" if meant else f"no linear layer of a {skeleton.config.model_type}"
                raise UserError(f"adapter.target_modules: {target} is {what}; there are {', '.join(known)}")

    def wrap(self, policy: Any, seed: int) -> Any:
        import torch
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.target_modules,
            # GPT-2's linear layers are stored transposed, and peft warns where it is left to find that out.
            fan_in_fan_out=policy.config.model_type == "gpt2",
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return get_peft_model(policy, config)

    def merge(self, policy: Any) -> Any:
        return policy.merge_and_unload(safe_merge=True)


@dataclass(frozen=True)
class QLoRA(LoRA):
    """LoRA beside a base in 4 bits (arXiv 2305.14314). Merged, it is the dequantised base with the update.

    Attributes:
        quant_type, double_quant, compute_dtype: as `quantised.FourBit` has them.
    """

    quant_type: Literal["nf4", "fp4"]
    double_quant: bool
    compute_dtype: Literal["bfloat16", "float32"]

    quantised: ClassVar[bool] = True

    def check(self, model: Model) -> None:
        for package, extra in (("peft", "peft"), ("bitsandbytes", "8bit")):
            if find_spec(package) is None:
                raise UserError(f"adapter=qlora needs {package}: pip install -e '.[{extra}]', or use adapter=lora")
        super().check(model)
        from selfcontrast.models.quantised import fault

        if reason := fault():
            raise UserError(f"adapter=qlora: bitsandbytes cannot compute in 4 bits here ({reason}): use adapter=lora")

    def wrap(self, policy: Any, seed: int) -> Any:
        from selfcontrast.models.quantised import FourBit, quantise

        quantise(policy, FourBit(self.quant_type, self.double_quant, self.compute_dtype))
        policy.is_loaded_in_4bit = True  # how peft knows
        try:
            return super().wrap(policy, seed)
        finally:
            del policy.is_loaded_in_4bit

    def merge(self, policy: Any) -> Any:
        from selfcontrast.models.quantised import merged

        return merged(policy)
