"""Modules that are imported when they are first used: a command answers before torch is there."""

from importlib import import_module
from typing import Any


class Lazy:
    """Stands for a module, which is imported on the first access to one of its attributes.

    (importlib's LazyLoader puts a module into `sys.modules`, where `inspect` touches it and thereby imports it.)
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(import_module(self._name), attribute)
