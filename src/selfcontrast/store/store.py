"""The store itself: recall an artifact, or compute it once.

A stage works in `ROOT/STAGE/KEY.partial/`, which survives a crash, so that a stage that can resume finds what it had;
publishing is one rename. Processes that want the same artifact wait for one computation.
"""

import json
import logging
import os
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from selfcontrast.errors import UserError
from selfcontrast.provenance import provenance
from selfcontrast.store import full
from selfcontrast.store.artifact import (
    RESUME,
    Artifact,
    complete,
    content_of,
    read_manifest,
    verify,
    verify_once,
    write_json,
    write_manifest,
)
from selfcontrast.store.code import changed
from selfcontrast.store.locks import locked, locked_if_free
from selfcontrast.store.remote import Remote, is_url
from selfcontrast.store.runs import Run
from selfcontrast.store.stage import Stage
from selfcontrast.store.trash import discard, empty

log = logging.getLogger(__name__)

BEGUN_WITH = "begun_with.json"  # in a working folder: the inputs and the code of the attempt


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

    def get(self, stage: Stage, again_before: float = 0.0) -> Artifact:
        """The stage's artifact, computed if it is not there, or was made from inputs that are others by now.

        Args:
            again_before: compute it again if it was made before this time, in seconds since the epoch.

        Raises:
            UserError: where the disk is full, is not ours to write on, or has no file locks; and where an input has
                been computed again meanwhile, by another process.
        """
        with full.explained(self.root):
            if self.run:
                self.run.uses(stage.name, stage.key)
            artifact = self._recall(stage, again_before) or self._obtain(stage, again_before)
            self._mirror(artifact)
        return artifact

    def _recall(self, stage: Stage, again_before: float) -> Artifact | None:
        """What is published, intact, and made from these inputs.

        It needs no lock: what is published is replaced whole, and never changed.
        """
        folder = self.root / stage.name / stage.key
        try:
            if not folder.exists() or verify_once(folder):
                return None
            artifact = Artifact.read(folder, cached=True)
        except OSError:  # gone since: pruned, or just now replaced
            return None
        return None if stage.stale(artifact.manifest) or artifact.created < again_before else artifact

    def _obtain(self, stage: Stage, again_before: float) -> Artifact:
        final = self.root / stage.name / stage.key
        with locked(self.root, stage.name, stage.key):
            if found := self._recall(stage, again_before):  # computed while we waited for the lock
                return found
            partial = final.with_suffix(".partial")
            again = final.exists() and not verify(final)  # it is whole, and not what is wanted
            if final.exists() and not again:
                log.warning("%s: %s; computing it again", final, verify(final))
            if recovered := self._recover(stage, final, partial, again_before):
                return recovered
            self._compute(partial, stage, again)
            return self._publish(partial, final, cached=False)

    def _recover(self, stage: Stage, final: Path, partial: Path, again_before: float) -> Artifact | None:
        """What needs no computing: a whole artifact that was not yet published, or one of the remote store."""

        def wanted(folder: Path) -> bool:
            artifact = Artifact.read(folder, cached=True)
            return not stage.stale(artifact.manifest) and artifact.created >= again_before

        if complete(partial, stage.key) and wanted(partial):  # whoever computed it was killed before the last rename
            return self._publish(partial, final, cached=True)
        if self.remote and self.remote.has(stage.name, stage.key):
            copy = final.with_suffix(".download")
            if self.remote.download(stage.name, stage.key, copy):
                if wanted(copy):
                    return self._publish(copy, final, cached=True)
                shutil.rmtree(copy)
                self.remote.replace(stage.name, stage.key)
        return None

    def _compute(self, partial: Path, stage: Stage, again: bool) -> None:
        partial.mkdir(parents=True, exist_ok=True)
        _clear(partial)
        _check_resumable(partial, stage, again)
        begun, resumed = time.perf_counter(), (partial / RESUME).exists()
        try:
            summary = stage.compute(partial) or {}
            for role, artifact in stage.inputs.items():
                _check_unchanged(stage, role, artifact)
            (partial / BEGUN_WITH).unlink(missing_ok=True)
            facts = {
                **stage.identity,
                "summary": summary,
                "seconds": round(time.perf_counter() - begun, 3),
                "resumed": resumed,
                "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "provenance": provenance(),
                "made_of": stage.made_of,
                "code": stage.code,
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
        if left.name not in (RESUME, BEGUN_WITH):
            shutil.rmtree(left) if left.is_dir() else left.unlink()


def _check_resumable(partial: Path, stage: Stage, again: bool) -> None:
    """Drops what an earlier attempt kept if it was made from other inputs, or by other code where that is the point.

    Says for the next attempt what this one begins with.
    """
    mark = partial / BEGUN_WITH
    now = {"made_of": stage.made_of, "code": stage.code}
    if (partial / RESUME).exists() and (before := _read_mark(mark)):
        files = changed(before["code"], now["code"])
        if before["made_of"] != now["made_of"] or (again and files):
            log.warning("%s: an earlier attempt had other inputs or other code; beginning anew", stage.name)
            shutil.rmtree(partial / RESUME)
        elif files:
            log.warning("%s: goes on from what other code began (%s)", stage.name, ", ".join(files))
    write_json(mark, now)


def _read_mark(mark: Path) -> dict[str, Any] | None:
    """What an attempt began with; None where it did not say, or did not come to its end."""
    try:
        found: dict[str, Any] = json.loads(mark.read_text())
        _ = found["made_of"], dict(found["code"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found


def _check_unchanged(stage: Stage, role: str, artifact: Artifact) -> None:
    """Raises `UserError` where an input is another by now, or gone: this stage may have read some of each."""
    if not artifact.content:
        return
    try:
        same = content_of(read_manifest(artifact.path)) == artifact.content
    except (OSError, ValueError):
        same = False
    if not same:
        raise UserError(
            f"{stage.name}: its {role} ({artifact.path}) have been computed again by another process meanwhile; "
            "run the same command again"
        )
