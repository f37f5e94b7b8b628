"""The store itself: recall an artifact, or compute it once.

A stage works in `ROOT/STAGE/KEY.partial/`, which survives a crash, so that a stage that can resume finds what it had;
publishing is one rename. Processes that want the same artifact wait for one computation.
"""

import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from selfcontrast.provenance import provenance
from selfcontrast.store import full
from selfcontrast.store.artifact import (
    RESUME,
    Artifact,
    complete,
    identity_of,
    key_of,
    verify,
    verify_once,
    write_manifest,
)
from selfcontrast.store.locks import locked, locked_if_free
from selfcontrast.store.remote import Remote, is_url
from selfcontrast.store.runs import Run
from selfcontrast.store.trash import discard, empty

log = logging.getLogger(__name__)

Compute = Callable[[Path], Mapping[str, Any] | None]


class Store:
    """The artifacts under one folder, which processes and machines may share.

    Args:
        root: the folder.
        run: who asks, for the record of what is in use.
        remote: where artifacts are also looked for, and copied to.
    """

    def __init__(self, root: Path, run: Run | None = None, remote: Remote | None = None) -> None:
        self.root = root
        self.run = run
        self.remote = remote

    @classmethod
    def at(cls, place: str, cache: Path, output: Path) -> "Store":
        """The store of a config: `place` is a folder, or a URL whose working copies lie in `cache`.

        Raises:
            UserError: for a URL that no installed package understands.
        """
        root, remote = (cache, Remote(place)) if is_url(place) else (Path(place), None)
        return cls(root, Run(root, output), remote)

    def get(
        self,
        stage: str,
        version: int,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Artifact],
        compute: Compute,
    ) -> Artifact:
        """The artifact of these settings and inputs, computed if it is not there.

        Args:
            stage: name, and folder, of the stage.
            version: raised whenever the stage's code changes what it computes.
            settings: JSON values that decide the result.
            inputs: the artifacts it is computed from, by role.
            compute: fills the folder it is given; what it returns (a small JSON object) becomes the summary. It
                may keep resumable state under `RESUME` there.

        Raises:
            UserError: where the disk is full, is not ours to write on, or has no file locks.
        """
        identity = identity_of(stage, version, settings, inputs)
        key = key_of(identity)
        with full.explained(self.root):
            if self.run:
                self.run.uses(stage, key)
            artifact = self._recall(stage, key) or self._obtain(stage, key, identity, compute)
            self._mirror(artifact)
        return artifact

    def _recall(self, stage: str, key: str) -> Artifact | None:
        """What is published and intact. It needs no lock: nothing changes under a published name."""
        folder = self.root / stage / key
        try:
            return Artifact.read(folder, cached=True) if folder.exists() and not verify_once(folder) else None
        except OSError:  # gone since: pruned, or damaged and just now replaced
            return None

    def _obtain(self, stage: str, key: str, identity: Mapping[str, Any], compute: Compute) -> Artifact:
        final = self.root / stage / key
        with locked(self.root, stage, key):
            if found := self._recall(stage, key):  # by whom we have waited for
                return found
            if final.exists():
                log.warning("%s: %s; computing it again", final, verify(final))
            partial = final.with_suffix(".partial")
            if complete(partial, key):  # whoever computed it was killed before the last rename
                return self._publish(partial, final, cached=True)
            if self.remote and self.remote.has(stage, key):
                copy = final.with_suffix(".download")
                if self.remote.download(stage, key, copy):
                    return self._publish(copy, final, cached=True)
            self._compute(partial, identity, compute)
            return self._publish(partial, final, cached=False)

    def _compute(self, partial: Path, identity: Mapping[str, Any], compute: Compute) -> None:
        partial.mkdir(parents=True, exist_ok=True)
        _clear(partial)
        begun, resumed = time.perf_counter(), (partial / RESUME).exists()
        try:
            summary = compute(partial) or {}
            facts = {
                **identity,
                "summary": summary,
                "seconds": round(time.perf_counter() - begun, 3),
                "resumed": resumed,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "provenance": provenance(),
            }
            write_manifest(partial, facts)
        except Exception as error:
            if full.no_space(error):
                _clear(partial)  # half-written files would keep the next attempt from its space
            raise

    def _publish(self, folder: Path, final: Path, cached: bool) -> Artifact:
        """Gives a complete folder its name; a damaged one keeps it until now, for those who read its other files."""
        old = [discard(self.root, path) for path in (folder / RESUME, final) if path.exists()]
        os.rename(folder, final)
        empty(*old)
        return Artifact.read(final, cached)

    def _mirror(self, artifact: Artifact) -> None:
        """Lets the remote store have the artifact, unless another process sees to that right now."""
        if self.remote:
            with locked_if_free(self.root, f"upload-{artifact.stage}", artifact.key) as ours:
                if ours:
                    self.remote.mirror(artifact)


def _clear(partial: Path) -> None:
    """Leaves of an earlier attempt what it kept for this one: nothing else of it may be published."""
    for left in partial.iterdir():
        if left.name != RESUME:
            shutil.rmtree(left) if left.is_dir() else left.unlink()
