"""A store at a URL (s3://, gs://, hf://, any protocol of fsspec), with working copies in a local folder.

An artifact's manifest is uploaded last, so that a half-uploaded artifact is never read. Downloads are verified. Object
stores have no locks: two machines may compute the same artifact at the same time, and the later upload replaces the
earlier one file by file.
"""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import fsspec
from fsspec.registry import known_implementations

from selfcontrast.errors import UserError
from selfcontrast.store.artifact import MANIFEST, Artifact, verify

log = logging.getLogger(__name__)


def is_url(location: str) -> bool:
    return "://" in location


class Remote:
    """The artifacts under one URL."""

    def __init__(self, url: str) -> None:
        if urlsplit(url).password:
            raise UserError("store: the URL contains a password. Remove it; credentials come from the environment.")
        self.url = url
        self._unusable: set[str] = set()
        try:
            # Listings are not cached, because other machines add to them.
            self.fs, root = fsspec.url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            raise UserError(f"store={url}: a package is missing. Run: pip install {_package(url)}") from error
        except ValueError as error:
            raise UserError(f"store={url}: {error}. Give a folder, or a URL such as s3://bucket/path.") from error
        self.root = root.rstrip("/")

    def has(self, stage: str, key: str) -> bool:
        """Return whether the remote store has the artifact and it is not known to be damaged or outdated."""
        path = self._path(stage, key)
        with self._reached():
            return path not in self._unusable and bool(self.fs.exists(f"{path}/{MANIFEST}"))

    def download(self, stage: str, key: str, folder: Path) -> bool:
        """Copy the artifact to `folder`. Return False, with a warning, if it is damaged.

        Raises:
            UserError: if the URL cannot be reached. The artifact may exist there, and computing it can take hours.
        """
        path = self._path(stage, key)
        log.info("%-24s downloading from %s", stage, self.url)
        shutil.rmtree(folder, ignore_errors=True)
        damage: str | None = "incomplete"
        try:
            with self._reached():
                damage = self._copy(path, folder) or verify(folder, key)
        finally:
            if damage:
                shutil.rmtree(folder, ignore_errors=True)
        if damage:
            log.warning("%s: %s. Recomputing it.", self._url(stage, key), damage)
            self._unusable.add(path)
        return damage is None

    def mark_outdated(self, stage: str, key: str) -> None:
        """Let the next artifact of this key replace the remote one."""
        self._unusable.add(self._path(stage, key))

    def mirror(self, artifact: Artifact) -> None:
        """Upload the artifact if the remote store lacks it. A failure is only logged: the next run tries again."""
        path = self._path(artifact.stage, artifact.key)
        try:
            if self.has(artifact.stage, artifact.key):
                return
            for name in (*artifact.manifest["files"], MANIFEST):
                self.fs.makedirs(f"{path}/{name}".rpartition("/")[0], exist_ok=True)
                self.fs.put_file(str(artifact.path / name), f"{path}/{name}")
            self._unusable.discard(path)
        except Exception as error:  # each protocol's package has its own errors
            url = self._url(artifact.stage, artifact.key)
            log.warning("%s: not uploaded (%s). The next run tries again.", url, _line(error))

    def _copy(self, path: str, folder: Path) -> str | None:
        """Copy the remote artifact to `folder`. Return what is wrong with it, or None."""
        try:
            manifest = self.fs.cat_file(f"{path}/{MANIFEST}")
            names = list(json.loads(manifest)["files"])
        except (ValueError, KeyError, TypeError):
            return "unreadable manifest"
        for name in names:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                return f"{name} does not belong there"  # it would be written outside the folder
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                self.fs.get_file(f"{path}/{name}", str(folder / name))
            except FileNotFoundError:
                return f"{name} is missing"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).write_bytes(manifest)
        return None

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each protocol's package has its own errors
            raise UserError(
                f"store={self.url}: cannot be reached ({_line(error)}). Check its address, the network and the "
                "credentials, then run the same command again."
            ) from error

    def _path(self, stage: str, key: str) -> str:
        return f"{self.root}/{stage}/{key}"

    def _url(self, stage: str, key: str) -> str:
        return f"{self.url.rstrip('/')}/{stage}/{key}"


def _package(url: str) -> str:
    """Return the distribution that implements a URL's protocol: s3fs for s3://."""
    return str(known_implementations[urlsplit(url).scheme]["class"]).split(".")[0]


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
