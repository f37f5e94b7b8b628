"""A stage of a job: what it computes, and the settings and inputs that decide the result."""

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
    """One step of a job, whose result the store caches.

    Attributes:
        name: name of the stage, and of its folder in the store.
        version: increased whenever a change of the code changes the result.
        settings: the values that decide the result: JSON, and components, which enter as their `settings_of`.
        inputs: the artifacts that it is computed from, by role.
        compute: fills the given folder and returns a small JSON object, the summary. It may keep resumable state
            under `RESUME` in the folder.
        module: importable name of the module that computes it. Together with the modules of the components in the
            settings, it determines which source files decide the result.
    """

    name: str
    version: int
    settings: Mapping[str, Any]
    inputs: Mapping[str, Artifact]
    compute: Compute
    module: str | None = None

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The JSON value whose hash is the key."""
        return identity_of(self.name, self.version, self.settings, self.inputs)

    @cached_property
    def key(self) -> str:
        return key_of(self.identity)

    @cached_property
    def made_of(self) -> dict[str, str]:
        """Content hashes of the inputs, by role. The key holds only their keys."""
        return {role: artifact.content for role, artifact in self.inputs.items()}

    def stale(self, manifest: Mapping[str, Any]) -> bool:
        """Return whether an artifact of this key was made from inputs whose content has changed since then.

        Artifacts of earlier releases do not record that content and count as current.
        """
        recorded: dict[str, str] = manifest.get("made_of", self.made_of)
        return recorded != self.made_of

    @cached_property
    def code(self) -> Code:
        """Hashes of the source files that decide the result, as they are now."""
        modules = {self.module} if self.module else set()
        return code_of(modules | {cls.__module__ for cls in classes_in(self.settings)})
