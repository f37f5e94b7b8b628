"""The store itself: recall an artifact, or compute it once.

A stage works in `ROOT/STAGE/KEY.partial/`, which survives a crash, so that a stage that can resume finds what it had;
publishing is one rename. Processes that want the same artifact wait for one computation.
"""

import logging
import os
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path

from selfcontrast.provenance import provenance
from selfcontrast.store import full
from selfcontrast.store.artifact import (
    RESUME,
    Artifact,
    complete,
    made_from,
    read_manifest,
    verify,
    verify_once,
    write_manifest,
)
from selfcontrast.store.locks import locked, locked_if_free
from selfcontrast.store.remote import Remote, is_url
from selfcontrast.store.runs import Run
from selfcontrast.store.stage import Stage
from selfcontrast.store.trash import discard, empty

log = logging.getLogger(__name__)

BEGUN = time.time()  # when this process did, near enough


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

    def get(self, stage: Stage, again: bool = False) -> Artifact:
        """The stage's artifact, computed if it is not there.

        Args:
            again: compute it even so, where it was made before this process began. Artifacts that were made from the
                old one are deleted, unless the new one's files are the same.

        Raises:
            UserError: where the disk is full, is not ours to write on, or has no file locks.
        """
        with full.explained(self.root):
            if self.run:
                self.run.uses(stage.name, stage.key)
            artifact = (None if again else self._recall(stage)) or self._obtain(stage, again)
            self._mirror(artifact)
        return artifact

    def _recall(self, stage: Stage) -> Artifact | None:
        """What is published and intact. It needs no lock: nothing changes under a published name."""
        folder = self.root / stage.name / stage.key
        try:
            return Artifact.read(folder, cached=True) if folder.exists() and not verify_once(folder) else None
        except OSError:  # gone since: pruned, or damaged and just now replaced
            return None

    def _obtain(self, stage: Stage, again: bool) -> Artifact:
        final = self.root / stage.name / stage.key
        with locked(self.root, stage.name, stage.key):
            # By whom we have waited for, or, where it is to be made again, by an earlier job of this process.
            if (found := self._recall(stage)) and not (again and found.created < BEGUN):
                return found
            partial = final.with_suffix(".partial")
            if found is None and (recovered := self._recover(stage, final, partial)):
                return recovered
            self._compute(partial, stage)
            if found:
                self._discard_made_from(found, partial)
            return self._publish(partial, final, cached=False)

    def _recover(self, stage: Stage, final: Path, partial: Path) -> Artifact | None:
        """What needs no computing: a whole artifact that was not yet published, or one of the remote store."""
        if final.exists():
            log.warning("%s: %s; computing it again", final, verify(final))
        if complete(partial, stage.key):  # whoever computed it was killed before the last rename
            return self._publish(partial, final, cached=True)
        if self.remote and self.remote.has(stage.name, stage.key):
            copy = final.with_suffix(".download")
            if self.remote.download(stage.name, stage.key, copy):
                return self._publish(copy, final, cached=True)
        return None

    def _compute(self, partial: Path, stage: Stage) -> None:
        partial.mkdir(parents=True, exist_ok=True)
        _clear(partial)
        code = stage.code  # before it is run: who edits a file meanwhile has not changed this process
        begun, resumed = time.perf_counter(), (partial / RESUME).exists()
        try:
            summary = stage.compute(partial) or {}
            facts = {
                **stage.identity,
                "summary": summary,
                "seconds": round(time.perf_counter() - begun, 3),
                "resumed": resumed,
                "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "provenance": provenance(),
                "code": code,
            }
            write_manifest(partial, facts)
        except Exception as error:
            if full.no_space(error):
                _clear(partial)  # half-written files would keep the next attempt from its space
            raise

    def _discard_made_from(self, old: Artifact, new: Path) -> None:
        """Removes what was made from an artifact, and from that, where another is about to take its place."""
        if read_manifest(new)["files"] == old.manifest["files"]:
            return
        made = made_from(self.root, old.key)
        log.info(
            "%s/%s: another result; deleting %d artifacts that were made from the old one",
            old.stage,
            old.key,
            len(made),
        )
        for folder in made:
            with locked(self.root, folder.parent.name, folder.name):
                if folder.exists():
                    empty(discard(self.root, folder))

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
