"""Look an artifact up in the store, or compute it once.

A stage works in `ROOT/STAGE/KEY.partial/`. The folder survives a crash, so that a stage can resume from it. Publishing
is one rename. Processes that need the same artifact wait for one computation.
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

BEGUN_WITH = "begun_with.json"  # in a working folder: inputs and code at the start of the attempt


class Store:
    """The artifacts under one folder, which processes and machines may share.

    Args:
        root: the folder.
        run: the run whose use of artifacts is recorded.
        remote: a second store that artifacts are read from and copied to.
    """

    def __init__(self, root: Path, run: Run | None = None, remote: Remote | None = None) -> None:
        self.root = root
        self.run = run
        self.remote = remote

    @classmethod
    def at(cls, location: str, cache: Path, output: Path) -> "Store":
        """Open the store of a config. `location` is a folder, or a URL whose working copies are kept in `cache`.

        Raises:
            UserError: if no installed package understands the URL.
        """
        root, remote = (cache, Remote(location)) if is_url(location) else (Path(location), None)
        return cls(root, Run(root, output), remote)

    def get(self, stage: Stage, again_before: float = 0.0) -> Artifact:
        """Return the stage's artifact. Compute it if it is missing or was made from other inputs.

        Args:
            again_before: recompute an artifact that is older than this, in seconds since the epoch.

        Raises:
            UserError: if the disk is full, not writable or without file locks, or if another process recomputed
                an input meanwhile.
        """
        with full.explain_disk_errors(self.root):
            if self.run:
                self.run.uses(stage.name, stage.key)
            artifact = self._look_up(stage, again_before) or self._obtain(stage, again_before)
            self._mirror(artifact)
        return artifact

    def _look_up(self, stage: Stage, again_before: float) -> Artifact | None:
        """Return the published artifact if it is intact and made from these inputs.

        No lock is needed: a published artifact is never changed, only replaced as a whole.
        """
        folder = self.root / stage.name / stage.key
        try:
            if not folder.exists() or verify_once(folder):
                return None
            artifact = Artifact.read(folder, cached=True)
        except OSError:  # pruned or replaced meanwhile
            return None
        return None if stage.stale(artifact.manifest) or artifact.created < again_before else artifact

    def _obtain(self, stage: Stage, again_before: float) -> Artifact:
        final = self.root / stage.name / stage.key
        with locked(self.root, stage.name, stage.key):
            if artifact := self._look_up(stage, again_before):  # another process computed it meanwhile
                return artifact
            partial = final.with_suffix(".partial")
            outdated = final.exists() and not verify(final)  # intact, but too old or made from other inputs
            if final.exists() and not outdated:
                log.warning("%s: %s. Recomputing it.", final, verify(final))
            if recovered := self._recover(stage, final, partial, again_before):
                return recovered
            self._compute(partial, stage, outdated)
            return self._publish(partial, final, cached=False)

    def _recover(self, stage: Stage, final: Path, partial: Path, again_before: float) -> Artifact | None:
        """Return an artifact that needs no computation: a complete unpublished one, or one of the remote store."""

        def is_current(folder: Path) -> bool:
            artifact = Artifact.read(folder, cached=True)
            return not stage.stale(artifact.manifest) and artifact.created >= again_before

        if complete(partial, stage.key) and is_current(partial):  # its process was killed before the last rename
            return self._publish(partial, final, cached=True)
        if self.remote and self.remote.has(stage.name, stage.key):
            copy = final.with_suffix(".download")
            if self.remote.download(stage.name, stage.key, copy):
                if is_current(copy):
                    return self._publish(copy, final, cached=True)
                shutil.rmtree(copy)
                self.remote.mark_outdated(stage.name, stage.key)
        return None

    def _compute(self, partial: Path, stage: Stage, outdated: bool) -> None:
        partial.mkdir(parents=True, exist_ok=True)
        _clear(partial)
        _check_resumable(partial, stage, outdated)
        start, resumed = time.perf_counter(), (partial / RESUME).exists()
        try:
            summary = stage.compute(partial) or {}
            for role, artifact in stage.inputs.items():
                _check_unchanged(stage, role, artifact)
            (partial / BEGUN_WITH).unlink(missing_ok=True)
            facts = {
                **stage.identity,
                "summary": summary,
                "seconds": round(time.perf_counter() - start, 3),
                "resumed": resumed,
                "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "provenance": provenance(),
                "made_of": stage.made_of,
                "code": stage.code,
            }
            write_manifest(partial, facts)
        except Exception as error:
            if full.no_space(error):
                _clear(partial)  # half-written files would take up the space that the next attempt needs
            raise

    def _publish(self, folder: Path, final: Path, cached: bool) -> Artifact:
        """Give a complete folder its final name. Until then a damaged artifact stays for readers of its other files."""
        old = [discard(self.root, path) for path in (folder / RESUME, final) if path.exists()]
        os.rename(folder, final)
        empty(*old)
        return Artifact.read(final, cached)

    def _mirror(self, artifact: Artifact) -> None:
        """Copy the artifact to the remote store, unless another process is doing so."""
        if self.remote:
            with locked_if_free(self.root, f"upload-{artifact.stage}", artifact.key) as acquired:
                if acquired:
                    self.remote.mirror(artifact)


def _clear(partial: Path) -> None:
    """Delete an earlier attempt's files except its resume state, so that none of them is published."""
    for path in partial.iterdir():
        if path.name not in (RESUME, BEGUN_WITH):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _check_resumable(partial: Path, stage: Stage, outdated: bool) -> None:
    """Delete an earlier attempt's resume state if its inputs differ; with `outdated`, also if its code differs.

    Record the inputs and code of this attempt for the next one.
    """
    mark = partial / BEGUN_WITH
    now = {"made_of": stage.made_of, "code": stage.code}
    if (partial / RESUME).exists() and (before := _read_mark(mark)):
        files = changed(before["code"], now["code"])
        if before["made_of"] != now["made_of"] or (outdated and files):
            log.warning(
                "%s: an earlier attempt had other inputs or other code. Starting from the beginning.", stage.name
            )
            shutil.rmtree(partial / RESUME)
        elif files:
            log.warning("%s: resumes an attempt that was started with other code (%s)", stage.name, ", ".join(files))
    write_json(mark, now)


def _read_mark(mark: Path) -> dict[str, Any] | None:
    """Return the inputs and code that an attempt started with; None if the file is missing or incomplete."""
    try:
        start: dict[str, Any] = json.loads(mark.read_text())
        _ = start["made_of"], dict(start["code"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return start


def _check_unchanged(stage: Stage, role: str, artifact: Artifact) -> None:
    """Raise `UserError` if an input was replaced or deleted: this stage may have read parts of both versions."""
    if not artifact.content:
        return
    try:
        unchanged = content_of(read_manifest(artifact.path)) == artifact.content
    except (OSError, ValueError):
        unchanged = False
    if not unchanged:
        raise UserError(
            f"{stage.name}: another process recomputed its input {role} ({artifact.path}) meanwhile. "
            "Run the same command again."
        )
