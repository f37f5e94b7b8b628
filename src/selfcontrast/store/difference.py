"""How two artifacts of a store differ, back to the settings and the code that make the difference."""

from collections.abc import Iterator
from dataclasses import dataclass

from selfcontrast.store.catalog import Catalog, Entry
from selfcontrast.store.code import changed

NOTHING = "—"


@dataclass(frozen=True)
class Difference:
    """
    Attributes:
        where: the stages from the artifacts to this one: "align > negatives > candidates".
        what: a setting, an input, or the code.
        values: of the one and the other artifact.
    """

    where: str
    what: str
    values: tuple[str, str]


def differences(catalog: Catalog, one: Entry, other: Entry, where: str = "") -> Iterator[Difference]:
    """Of two artifacts of one stage, and then of those inputs of theirs that are not the same."""
    where = where or one.stage
    for name in sorted(one.settings.keys() | other.settings.keys()):
        values = (one.settings.get(name, NOTHING), other.settings.get(name, NOTHING))
        if values[0] != values[1]:
            yield Difference(where, name, values)
    codes = (one.manifest.get("code", {}), other.manifest.get("code", {}))
    for file in changed(*codes):
        yield Difference(where, f"code {file}", (codes[0].get(file, NOTHING), codes[1].get(file, NOTHING)))
    inputs = (catalog.inputs_of(one), catalog.inputs_of(other))
    for role in sorted(one.inputs.keys() | other.inputs.keys()):
        keys = (one.inputs.get(role, NOTHING), other.inputs.get(role, NOTHING))
        if keys[0] == keys[1]:
            continue
        yield Difference(where, f"input {role}", keys)
        before, after = inputs[0].get(role), inputs[1].get(role)
        if before and after:
            yield from differences(catalog, before, after, f"{where} > {role}")
