"""Self-Contrast: feedback-free alignment with many self-generated negatives (arXiv 2404.00604).

This is the public API; docs/api.md has examples. A name is imported when it is first used, so that this package is
quick to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfcontrast.api import compose as compose
    from selfcontrast.api import plan as plan
    from selfcontrast.api import run as run
    from selfcontrast.config import build as build
    from selfcontrast.errors import UserError as UserError
    from selfcontrast.filters.single_prompt import choose_negatives as choose_negatives
    from selfcontrast.losses import dft as dft
    from selfcontrast.losses import dpo as dpo
    from selfcontrast.losses import hardest as hardest
    from selfcontrast.losses import lipo_lambda as lipo_lambda
    from selfcontrast.losses import mean_margin as mean_margin
    from selfcontrast.losses import nca as nca
    from selfcontrast.losses import plackett_luce as plackett_luce
    from selfcontrast.losses import softmax as softmax
    from selfcontrast.losses import space as space
    from selfcontrast.losses import swepo as swepo
    from selfcontrast.models.log_probs import response_log_probs as response_log_probs
    from selfcontrast.models.packing import Group as Group
    from selfcontrast.models.packing import pack as pack
    from selfcontrast.models.shared_prompt import use_shared_prompt as use_shared_prompt

_LOSSES = (
    "dft", "dpo", "hardest", "lipo_lambda", "mean_margin", "nca", "plackett_luce", "softmax", "space", "swepo",
)  # fmt: skip
_MODULES = {
    **dict.fromkeys(("compose", "plan", "run"), "selfcontrast.api"),
    "build": "selfcontrast.config",
    "UserError": "selfcontrast.errors",
    "choose_negatives": "selfcontrast.filters.single_prompt",
    **dict.fromkeys(_LOSSES, "selfcontrast.losses"),
    "response_log_probs": "selfcontrast.models.log_probs",
    **dict.fromkeys(("Group", "pack"), "selfcontrast.models.packing"),
    "use_shared_prompt": "selfcontrast.models.shared_prompt",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
