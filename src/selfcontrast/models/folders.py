"""Check model folders before anything is computed: missing or damaged files, and unsuitable models."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from selfcontrast.errors import UserError, printable
from selfcontrast.store.content import Stamp, stamp_of

FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")  # safetensors' names of the dtypes that weights may have


def check_weights(folder: Path, setting: str) -> None:
    """Check every weight in the folder's files. Files that this process has checked are read again only if they change.

    Raises:
        UserError: if a file is missing or damaged, or a weight is NaN, infinite, or not a floating-point number.
            transformers would load such weights, and it casts integers.
    """
    files = sorted(folder.rglob("*.safetensors"))
    if not files:
        raise UserError(f"{setting}={folder}: no *.safetensors there. Save the model as safetensors.")
    for index in folder.glob("*.safetensors.index.json"):
        try:
            listed = set(json.loads(index.read_text())["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = _first_line(error)
            raise UserError(f"{setting}={folder}: {index.name} is damaged ({reason}). Copy it again.") from error
        if missing := sorted(str(name) for name in listed if not (folder / str(name)).is_file()):
            raise UserError(f"{setting}={folder}: {missing[0]} is missing, but {index.name} lists it. Copy it again.")
    quantized = _is_quantized(folder)
    for file in files:
        try:
            fault = _fault(file, stamp_of(file), quantized)
        except Exception as error:  # safetensors raises its own classes of errors
            reason = _first_line(error)
            raise UserError(f"{setting}={folder}: {file.name} is damaged ({reason}). Copy it again.") from error
        if fault:
            raise UserError(f"{setting}={folder}: {fault} ({file.name}). Use another model.")


@lru_cache(maxsize=256)
def _fault(file: Path, stamp: Stamp, quantized: bool) -> str | None:
    """Describe the first unusable weight of a file, if any. `stamp` makes a changed file a new cache entry."""
    from safetensors import safe_open

    with safe_open(str(file), framework="pt") as weights:
        for name in weights.keys():  # noqa: SIM118  # not a dictionary
            part = weights.get_slice(name)
            dtype = part.get_dtype()
            if dtype not in FLOATS:
                if _is_weight(name, part.get_shape()) and not quantized:
                    return f"the weight {name} has the type {dtype}, which is not a floating-point type"
            elif not is_finite(weights.get_tensor(name)):
                return f"the weight {name} has values that are NaN or infinite"
    return None


def _is_weight(name: str, shape: list[int]) -> bool:
    """Return True for a trained weight, not a buffer of positions or of an attention mask (GPT-2's attn.bias)."""
    last = name.rpartition(".")[2]
    return last == "weight" or (last == "bias" and len(shape) == 1)


def _is_quantized(folder: Path) -> bool:
    try:
        return "quantization_config" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):  # `load_config` reports the damage; encoders have the file elsewhere
        return False


def is_finite(tensor: Any) -> bool:
    """Return True if no value of a floating-point tensor is NaN or infinite."""
    import torch

    if not tensor.numel():
        return True
    tensor = tensor.float() if tensor.dtype.itemsize == 1 else tensor
    return bool(torch.stack(torch.aminmax(tensor)).isfinite().all())  # without a copy of the tensor


def check_causal(config: Any, setting: str) -> None:
    """Raise `UserError` if the config is not that of a causal language model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    model_type = config.model_type
    remote_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    encoder = getattr(config, "is_encoder_decoder", False) or getattr(config, "is_decoder", True) is False
    if encoder or not (remote_code or model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        raise UserError(
            f"{setting}: a {model_type} is not a causal language model. Use a causal one, such as Llama or Qwen."
        )


def load_config(path: str, setting: str, **options: Any) -> Any:
    """Load the config of a model. Raise `UserError` if it cannot be read."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, **options)
    except Exception as error:  # a damaged file may raise anything
        raise UserError(
            f"{setting}={path}: its config cannot be loaded ({_first_line(error)}). Copy the model again."
        ) from error


def tokenizer_at(path: str, setting: str, **options: Any) -> Any:
    """Load the tokenizer of a model and ensure a padding token. Raise `UserError` if it cannot be read."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
    except Exception as error:  # a damaged file may raise anything
        raise UserError(
            f"{setting}={path}: its tokenizer cannot be loaded ({_first_line(error)}). Copy the model again."
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _first_line(error: BaseException) -> str:
    """Return the first line of an error message, or the error's name."""
    lines = str(error).strip().splitlines()
    return printable(lines[0])[:200] if lines else type(error).__name__
