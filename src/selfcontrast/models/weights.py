"""Load models, and reject files that do not hold exactly the model's weights.

transformers initialises missing tensors at random and ignores unexpected ones. Both silently change all results. This
module raises an error that names these tensors. NaN, infinite and integer weights raise an error, too; transformers
would cast integers.
"""

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

from selfcontrast.errors import UserError
from selfcontrast.models.folders import check_weights, is_finite
from selfcontrast.models.hub import local_folder

log = logging.getLogger(__name__)

MAX_NAMES = 3  # number of names in an error


def load_whole(loader: Any, path: str | Path, model_name: str, **options: Any) -> Any:
    """Load a model from safetensors by a class of transformers. Soft caps of its attention, if any, are applied.

    Args:
        loader: a model class, or one of the `AutoModel` classes.
        model_name: name of the model in errors: "SETTING=PATH".

    Raises:
        UserError: if the files cannot be read, or a tensor is missing or has another shape or name.
    """
    from selfcontrast.models.rows import use_exact_attention  # imports torch

    try:
        model, report = loader.from_pretrained(
            str(path), use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError) as error:
        raise UserError(f"{model_name} cannot be loaded ({first_line(error)}). Copy it again.") from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":  # raised for a damaged file; its class is in safetensors' binary
            raise
        raise UserError(
            f"{model_name} cannot be loaded: a file of weights is damaged ({first_line(error)}). Copy it again."
        ) from error
    refuse_partial(model, report, model_name)
    refuse_unusable(model, path, model_name, options.get("revision"))
    use_exact_attention(model)
    return model


def refuse_unusable(model: Any, path: str | Path, model_name: str, revision: str | None) -> None:
    """Raise `UserError` if a loaded weight is NaN or infinite, or is not a floating-point number in its file.

    The loaded weight is checked too, because casting may overflow: 1e300 is infinite in float32.
    """
    refuse_non_finite(model, model_name)
    if folder := local_folder(str(path), revision):
        check_weights(folder, model_name.partition("=")[0])


def refuse_non_finite(model: Any, model_name: str) -> None:
    """Raise `UserError` if a weight of a model is NaN or infinite."""
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not weight.is_meta and not is_finite(weight.detach()):
            raise UserError(
                f"{model_name}: the weight {name} has values that are NaN or infinite: its training diverged, or its "
                "file is damaged. Use another model."
            )


def refuse_partial(model: Any, report: dict[str, Any], model_name: str, unused: Collection[str] = ()) -> None:
    """Raise `UserError` if a loading report has missing, mismatched or unexpected tensors.

    Args:
        report: from transformers' `output_loading_info`.
        unused: modules whose output is never read, so that their weights may be missing.
    """
    heads = tuple(f"{name}." for name in unused)
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(heads or ("\0",)))
    mismatched = sorted(report["mismatched_keys"])
    modules = {model.base_model_prefix, *(name for name, _ in model.named_children())}
    unexpected = sorted(name for name in report["unexpected_keys"] if name.split(".")[0] in modules)
    others = sorted(set(report["unexpected_keys"]) - set(unexpected))
    if missing:
        total = len(model.state_dict())
        fix = f"Rename the unknown weights in the files, such as {others[0]}." if others else "Give the complete files."
        raise UserError(f"{model_name}: {len(missing)} of {total} weights are missing: {_first_names(missing)}. {fix}")
    if mismatched:
        name, in_file, in_config = mismatched[0]
        shapes = f"{list(in_file)} in the file, {list(in_config)} by its config"
        raise UserError(
            f"{model_name}: {len(mismatched)} weights have another shape, such as {name}: {shapes}. "
            "Give the config that they were saved with."
        )
    if unexpected:
        raise UserError(
            f"{model_name}: its config leaves out {len(unexpected)} weights of its files: {_first_names(unexpected)}. "
            "Give the config that they were saved with."
        )
    if report["error_msgs"]:
        raise UserError(f"{model_name}: {report['error_msgs'][0]}. Give the config that its weights were saved with.")
    if others:
        log.info("%s: not used: %s", model_name, _first_names(others))


def first_line(error: BaseException) -> str:
    """Return the first line of an error message, or the error's name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _first_names(names: list[str]) -> str:
    return ", ".join(names[:MAX_NAMES]) + (f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else "")
