"""Load models whose files hold all of their weights.

transformers gives a tensor that no file has random values, and leaves out a tensor that no module has. Both change
every number that comes after without an error, so both are refused here by name. So are weights that are NaN or
infinite, and whole numbers in the place of weights, which transformers casts.
"""

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

from selfcontrast.errors import UserError
from selfcontrast.models.folders import check_weights, is_finite
from selfcontrast.models.hub import local_folder

log = logging.getLogger(__name__)

SHOWN = 3  # names in an error


def load_whole(loader: Any, path: str | Path, what: str, **options: Any) -> Any:
    """Load a model from safetensors by a class of transformers, with attention that honours its soft caps.

    Args:
        loader: a model class, or one of the `AutoModel` classes.
        what: how errors name the model: "SETTING=PLACE".

    Raises:
        UserError: if the files cannot be read, or lack one of the model's tensors, or hold it in another shape or
            under another name.
    """
    from selfcontrast.models.rows import use_exact_attention  # which imports torch

    try:
        model, report = loader.from_pretrained(
            str(path), use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError) as error:
        raise UserError(f"{what} cannot be loaded: {first_line(error)}") from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":  # of a damaged file; the package exports it from its binary
            raise
        raise UserError(f"{what} cannot be loaded: a file of weights is damaged ({first_line(error)})") from error
    refuse_partial(model, report, what)
    refuse_unusable(model, path, what, options.get("revision"))
    use_exact_attention(model)
    return model


def refuse_unusable(model: Any, path: str | Path, what: str, revision: str | None) -> None:
    """Raise `UserError` if a weight of a loaded model is NaN or infinite, or was no floating-point number in its file.

    The first may come from the type that a weight was cast to: 1e300 is infinite in float32.
    """
    refuse_non_finite(model, what)
    if folder := local_folder(str(path), revision):
        check_weights(folder, what.partition("=")[0])


def refuse_non_finite(model: Any, what: str) -> None:
    """Raise `UserError` if a weight of a model is NaN or infinite."""
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not weight.is_meta and not is_finite(weight.detach()):
            raise UserError(
                f"{what}: the weight {name} has values that are NaN or infinite: its training diverged, or its file "
                "is damaged"
            )


def refuse_partial(model: Any, report: dict[str, Any], what: str, unused: Collection[str] = ()) -> None:
    """Raise `UserError` if the report of a loading says that a tensor is missing, misshapen or left out.

    Args:
        report: as transformers gives it for `output_loading_info`.
        unused: modules of the model whose output nobody reads, so that their weights may be missing.
    """
    heads = tuple(f"{name}." for name in unused)
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(heads or ("\0",)))
    mismatched = sorted(report["mismatched_keys"])
    parts = {model.base_model_prefix, *(name for name, _ in model.named_children())}
    foreign = sorted(name for name in report["unexpected_keys"] if name.split(".")[0] in parts)
    others = sorted(set(report["unexpected_keys"]) - set(foreign))
    if missing:
        total = len(model.state_dict())
        renamed = f"; the files name them otherwise, such as {others[0]}: rename them" if others else ""
        raise UserError(f"{what}: {len(missing)} of {total} weights are missing: {_some(missing)}{renamed}")
    if mismatched:
        name, found, wanted = mismatched[0]
        shapes = f"{list(found)} in the file, {list(wanted)} by its config"
        raise UserError(f"{what}: {len(mismatched)} weights have another shape, such as {name}: {shapes}")
    if foreign:
        raise UserError(
            f"{what}: its config leaves out {len(foreign)} weights of its files: {_some(foreign)}; "
            "give the config that they were saved with"
        )
    if report["error_msgs"]:
        raise UserError(f"{what}: {report['error_msgs'][0]}")
    if others:
        log.info("%s: not used: %s", what, _some(others))


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
