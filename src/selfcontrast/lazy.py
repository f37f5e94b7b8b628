"""Import modules on first use, so that a command answers before torch is loaded."""

from importlib import import_module
from typing import Any


class Lazy:
    """A module that is imported on the first access to an attribute.

    importlib's LazyLoader is not used: it puts the module into `sys.modules`, where `inspect` triggers the import.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(import_module(self._name), attribute)
