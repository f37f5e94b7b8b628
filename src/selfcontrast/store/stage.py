"""A stage of a job: what it computes, and what decides that."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from selfcontrast.store.artifact import Artifact, identity_of, key_of
from selfcontrast.store.code import Code, code_of
from selfcontrast.store.settings import classes_in

Compute = Callable[[Path], Mapping[str, Any] | None]


@dataclass(frozen=True)
class Stage:
    """
    Attributes:
        name: of the stage, and of its folder in the store.
        version: raised whenever the stage's code changes what it computes.
        settings: what decides the result: JSON values, and components, of which `settings_of` is taken.
        inputs: the artifacts it is computed from, by role.
        compute: fills the folder it is given; what it returns (a small JSON object) becomes the summary. It may keep
            resumable state under `RESUME` there.
        module: whose code computes it, as an importable name; with those of the components in the settings it says
            which source files decide the result.
    """

    name: str
    version: int
    settings: Mapping[str, Any]
    inputs: Mapping[str, Artifact]
    compute: Compute
    module: str | None = None

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the key is a hash of, as JSON."""
        return identity_of(self.name, self.version, self.settings, self.inputs)

    @cached_property
    def key(self) -> str:
        return key_of(self.identity)

    @cached_property
    def made_of(self) -> dict[str, str]:
        """By role the content of the inputs, which a key does not hold: it holds their keys."""
        return {role: artifact.content for role, artifact in self.inputs.items()}

    def stale(self, manifest: Mapping[str, Any]) -> bool:
        """Whether an artifact of this key was made from inputs whose content is another by now.

        Artifacts of earlier releases do not say what they were made of.
        """
        recorded: dict[str, str] = manifest.get("made_of", self.made_of)
        return recorded != self.made_of

    @cached_property
    def code(self) -> Code:
        """The source files that decide the result, as they are now."""
        own = {self.module} if self.module else set()
        return code_of(own | {cls.__module__ for cls in classes_in(self.settings)})
