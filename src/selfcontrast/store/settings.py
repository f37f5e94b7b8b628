"""Turn components into the JSON values that enter a key: their class and fields, recursively."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

# Metadata for a dataclass field that cannot change a stage's result (batch sizes, devices, workers).
NOT_IN_KEY = {"in_key": False}

PACKAGE = __name__.partition(".")[0]


def settings_of(value: Any) -> Any:
    """Return the settings that decide the results of a component, or of a collection of components.

    A component's own `fingerprint` is used if it has one, else `fields_of`. Other values stay as they are.
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
    """Return the name of a component's class and its fields, without those marked `NOT_IN_KEY`.

    A field that names a file or folder has a function `in_key_as` in its metadata, which returns the content's hash.
    """
    values = {
        f.name: settings_of(f.metadata.get("in_key_as", lambda value: value)(getattr(component, f.name)))
        for f in fields(component)
        if f.metadata.get("in_key", True)
    }
    return {"class": class_name(type(component)), **values}


def class_name(cls: type) -> str:
    """Return a class's name; for this package without the module, so that moving a file recomputes nothing.

    Classes of other packages keep the module, since two of them may have the same name and fields.
    """
    in_package = cls.__module__.partition(".")[0] == PACKAGE
    return cls.__qualname__ if in_package else f"{cls.__module__}.{cls.__qualname__}"


def classes_in(value: Any) -> set[type]:
    """Return the classes of all components in a value."""
    classes: set[type] = set()
    if is_dataclass(value) and not isinstance(value, type):
        classes.add(type(value))
        for f in fields(value):
            if f.metadata.get("in_key", True):
                classes |= classes_in(getattr(value, f.name))
    elif isinstance(value, Mapping):
        for item in value.values():
            classes |= classes_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            classes |= classes_in(item)
    return classes
