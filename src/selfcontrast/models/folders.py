"""Folders of models, checked before anything is computed: what is missing, damaged or of another kind."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from selfcontrast.errors import UserError, printable
from selfcontrast.store.content import Stamp, stamp_of

FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")  # safetensors' names of types that weights may have


def check_weights(folder: Path, setting: str) -> None:
    """Open every file of weights and look at its numbers.

    A folder that this process has looked at is not read again before one of its files changes.

    Raises:
        UserError: for a file that is missing or damaged, and for a weight that is no floating-point number, is NaN or
            is infinite. transformers would load all of these: it casts whole numbers.
    """
    files = sorted(folder.rglob("*.safetensors"))
    if not files:
        raise UserError(f"{setting}={folder}: no *.safetensors there (other weight formats are not read)")
    for index in folder.glob("*.safetensors.index.json"):
        try:
            named = set(json.loads(index.read_text())["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{setting}={folder}: {index.name} is damaged ({_first(error)}): copy it again") from error
        if lacking := sorted(str(name) for name in named if not (folder / str(name)).is_file()):
            raise UserError(f"{setting}={folder}: {lacking[0]} is missing, which {index.name} names: copy it again")
    quantized = _is_quantized(folder)
    for file in files:
        try:
            fault = _fault(file, stamp_of(file), quantized)
        except Exception as error:  # the library has errors of its own
            raise UserError(f"{setting}={folder}: {file.name} is damaged ({_first(error)}): copy it again") from error
        if fault:
            raise UserError(f"{setting}={folder}: {fault} ({file.name}): give another model")


@lru_cache(maxsize=256)
def _fault(file: Path, stamp: Stamp, quantized: bool) -> str | None:
    """The first weight in a file that no model can use, and why; None where there is none."""
    from safetensors import safe_open

    with safe_open(str(file), framework="pt") as weights:
        for name in weights.keys():  # noqa: SIM118  # it is no dictionary
            part = weights.get_slice(name)
            kind = part.get_dtype()
            if kind not in FLOATS:
                if _is_weight(name, part.get_shape()) and not quantized:
                    return f"the weight {name} has the type {kind}, which is no floating-point type"
            elif not is_finite(weights.get_tensor(name)):
                return f"the weight {name} has values that are NaN or infinite"
    return None


def _is_weight(name: str, shape: list[int]) -> bool:
    """Whether it is trained, and no buffer of positions or of an attention mask, which GPT-2 calls a bias."""
    last = name.rpartition(".")[2]
    return last == "weight" or (last == "bias" and len(shape) == 1)


def _is_quantized(folder: Path) -> bool:
    try:
        return "quantization_config" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):  # told by `load_config`; sentence-transformers have theirs elsewhere
        return False


def is_finite(tensor: Any) -> bool:
    """Whether no value of a floating-point tensor is NaN or infinite."""
    import torch

    if not tensor.numel():
        return True
    tensor = tensor.float() if tensor.dtype.itemsize == 1 else tensor
    return bool(torch.stack(torch.aminmax(tensor)).isfinite().all())  # makes no copy of the tensor


def check_causal(config: Any, setting: str) -> None:
    """Raise `UserError` for a config of something else than a causal language model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = config.model_type
    own_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    encoder = getattr(config, "is_encoder_decoder", False) or getattr(config, "is_decoder", True) is False
    if encoder or not (own_code or kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        raise UserError(f"{setting}: a {kind} is no causal language model: choose one, such as a Llama or a Qwen")


def load_config(path: str, setting: str, **options: Any) -> Any:
    """The config of a model. Raises `UserError` where it cannot be read."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, **options)
    except Exception as error:  # a damaged file may raise anything
        raise UserError(f"{setting}={path}: its config cannot be loaded: {_first(error)}") from error


def tokenizer_at(path: str, setting: str, **options: Any) -> Any:
    """The tokenizer of a model, with a token to pad with. Raises `UserError` where it cannot be read."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
    except Exception as error:  # a damaged file may raise anything
        raise UserError(f"{setting}={path}: its tokenizer cannot be loaded: {_first(error)}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _first(error: BaseException) -> str:
    """The first line of an error, or its name where it has none."""
    lines = str(error).strip().splitlines()
    return printable(lines[0])[:200] if lines else type(error).__name__
