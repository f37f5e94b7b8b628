"""Types with bounds for numbers and texts in settings. Config classes annotate their fields with them.

`config.build` checks every field against its type and names the setting by its full key. Upper bounds exclude numbers
that would exhaust any machine's memory, perhaps after hours of work.
"""

import inspect
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError
from typing_extensions import get_protocol_members, is_protocol

from selfcontrast.errors import UserError

MAX_INT = 2**31 - 1  # files and libraries store integers in 32 bits
MAX_PRINTED = 60  # maximum characters of a value in an error


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


def _has_text(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty")
    if "\0" in value:
        raise ValueError("must not contain a NUL character")
    return value


Integer = Annotated[int, BeforeValidator(_no_bool), Field(le=MAX_INT)]
Real = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False, ge=-1e9, le=1e9)]

Count = Annotated[Integer, Field(ge=1)]
WholeNumber = Annotated[Integer, Field(ge=0)]
Seed = Annotated[int, BeforeValidator(_no_bool), Field(ge=0, lt=2**32)]  # the range of NumPy and Lightning
Workers = Annotated[Count, Field(le=4096)]  # threads, devices, processes, concurrent requests
Samples = Annotated[Count, Field(le=100_000)]  # responses per prompt
Tries = Annotated[WholeNumber, Field(le=1000)]

Positive = Annotated[Real, Field(gt=0)]
NonNegative = Annotated[Real, Field(ge=0)]
Seconds = Annotated[Positive, Field(le=1e7)]
Probability = Annotated[Real, Field(ge=0, le=1)]
BelowOne = Annotated[Real, Field(ge=0, lt=1)]
Fraction = Annotated[Real, Field(gt=0, le=1)]  # 1 included
ProperFraction = Annotated[Real, Field(gt=0, lt=1)]
Cosine = Annotated[Real, Field(gt=-1, le=1)]
Temperature = Annotated[NonNegative, Field(le=1000)]

Text = Annotated[str, AfterValidator(_has_text)]


def convert(value: Any, annotation: Any, name: str) -> Any:
    """Return `value` converted to the type `annotation`. For a float, 1 becomes 1.0 and "many" is refused.

    Raises:
        UserError: if the value has the wrong type or is out of bounds. The error names the full key.
    """
    if annotation is Any:
        return value
    if is_protocol(annotation):
        return check_protocol(value, annotation, name)
    choices = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    classes = [cls for cls in choices if isinstance(cls, type) and is_dataclass(cls)]
    if classes or is_dataclass(value):
        if not isinstance(value, tuple(cls for cls in choices if isinstance(cls, type))):
            description = type(value).__name__ if is_dataclass(value) else value
            _refuse(name, description, f"must be a {' or '.join(c.__name__ for c in classes) or 'value'}: see conf")
        return value
    try:
        return TypeAdapter(annotation).validate_python(value)
    except ValidationError as error:
        problem = error.errors()[0]
        inner_path = "".join(
            f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"] if _is_key(part)
        )
        reason = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        return _refuse(name + inner_path, problem["input"] if inner_path else value, reason + _or_null(annotation))


def quoted(text: str) -> str:
    """Return a text in quotes for Hydra. Quotes in it, and backslashes before them, are escaped."""
    return "'" + re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text) + "'"


def check_numbers(settings: Any, where: str) -> None:
    """Check the numbers of a dataclass that was built without a config. Raise `UserError` as `convert` does.

    Args:
        where: the path of the settings in the config.
    """
    cls: Any = type(settings)
    for name, annotation in _hints(cls).items():
        value = getattr(settings, name, None)
        has_numbers = isinstance(value, list) and bool(value) and all(isinstance(item, int | float) for item in value)
        if isinstance(value, int | float) or has_numbers:
            convert(value, annotation, f"{where}.{name}".lstrip("."))


@cache
def _hints(cls: Any) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in fields(cls)}


def check_protocol(value: Any, protocol: Any, name: str) -> Any:
    """Return `value`. Raise `UserError` if it lacks a member of the protocol. Members are not evaluated."""
    absent = object()
    missing = [m for m in sorted(get_protocol_members(protocol)) if inspect.getattr_static(value, m, absent) is absent]
    if missing:
        kind, description, details = protocol.__name__.lower(), value, ""
        if is_dataclass(value):
            description, details = type(value).__name__, f" (it lacks {', '.join(missing)})"
        _refuse(name, description, f"not a {kind}{details}. Choose an option of conf, or give a class as _target_.")
    return value


def check_values(value: Any, name: str) -> Any:
    """Return `value`. Raise `UserError` if it is or contains a number that is not finite, or invalid text."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name}={value}: must be a finite number")
    if isinstance(value, str):
        check_text(value, name)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            check_values(key, name)
            check_values(item, f"{name}.{key}")
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        for index, item in enumerate(value):
            check_values(item, f"{name}[{index}]")
    return value


def check_text(text: str, name: str) -> None:
    """Raise `UserError` for a text with a lone surrogate: Python reads bytes that are not valid text as surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        name, escaped = (each.encode("utf-8", "backslashreplace").decode() for each in (name, text))
        raise UserError(
            f"{name}: {escaped!r} is not valid text in the encoding {sys.getfilesystemencoding()}. Use UTF-8, and set "
            "a locale such as LC_ALL=C.UTF-8."
        ) from None


def _refuse(name: str, value: Any, reason: str) -> Any:
    text = repr(value) if not isinstance(value, str) or not value.isidentifier() else value
    text = text if len(text) <= MAX_PRINTED else f"{text[:MAX_PRINTED]}…"
    raise UserError(f"{name}={text}: {reason}")


def _is_key(part: int | str) -> bool:
    """Return True for a key or index in the value, False for one of pydantic's names for the types that it tried."""
    return isinstance(part, int) or (part.isidentifier() and part not in ("int", "float", "str", "bool", "none"))


def _or_null(annotation: Any) -> str:
    return ", or null" if type(None) in get_args(annotation) else ""
