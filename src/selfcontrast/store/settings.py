"""What decides a component's results, as JSON: its class and its fields, and so on inside of them."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

# Metadata of a dataclass field that cannot change a stage's result (batch sizes, devices, workers).
NOT_IN_KEY = {"in_key": False}

PACKAGE = __name__.partition(".")[0]


def settings_of(value: Any) -> Any:
    """A component, or a collection with components in it, as what decides its results.

    A component's own `fingerprint` is asked where it has one; else it is `fields_of`. Other values stay as they are.
    """
    if isinstance(value, type):
        return value
    if hasattr(value, "fingerprint"):
        return value.fingerprint()
    if is_dataclass(value):
        return fields_of(value)
    if isinstance(value, Mapping):
        return {str(name): settings_of(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [settings_of(item) for item in value]
    return value


def fields_of(component: Any) -> dict[str, Any]:
    """The name of a component's class and its fields, less those marked `NOT_IN_KEY`.

    A field that names a file or folder has a function in its metadata, `in_key_as`, which gives the content's hash.
    """
    own = {
        f.name: settings_of(f.metadata.get("in_key_as", lambda value: value)(getattr(component, f.name)))
        for f in fields(component)
        if f.metadata.get("in_key", True)
    }
    return {"class": class_name(type(component)), **own}


def class_name(cls: type) -> str:
    """A class's name; of this package's classes without the module, so that moving a file recomputes nothing.

    Two classes of other packages may have the same name and fields, and be told apart by their modules alone.
    """
    own = cls.__module__.partition(".")[0] == PACKAGE
    return cls.__qualname__ if own else f"{cls.__module__}.{cls.__qualname__}"


def classes_in(value: Any) -> set[type]:
    """The classes of all components in a value."""
    found: set[type] = set()
    if is_dataclass(value) and not isinstance(value, type):
        found.add(type(value))
        for f in fields(value):
            if f.metadata.get("in_key", True):
                found |= classes_in(getattr(value, f.name))
    elif isinstance(value, Mapping):
        for item in value.values():
            found |= classes_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            found |= classes_in(item)
    return found
