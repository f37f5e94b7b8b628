"""A store at a URL (s3://, gs://, hf://, any protocol of fsspec), mirrored into a local folder of working copies.

An artifact's manifest is uploaded last, so that a half-uploaded one is never read, and what is downloaded is verified
like anything else. Object stores have no locks: two machines may compute the same artifact at the same time, and the
later upload replaces the earlier one, file by file.
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


def is_url(place: str) -> bool:
    return "://" in place


class Remote:
    """The artifacts under one URL."""

    def __init__(self, url: str) -> None:
        if urlsplit(url).password:
            raise UserError("store: a URL without a password in it: credentials come from the environment")
        self.url = url
        self._damaged: set[str] = set()
        try:
            # Listings are not cached: other machines add to them.
            self.fs, root = fsspec.url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            raise UserError(f"store={url}: needs a package: pip install {_package(url)}") from error
        except ValueError as error:
            raise UserError(f"store={url}: {error}; a folder, or a URL such as s3://bucket/path") from error
        self.root = root.rstrip("/")

    def has(self, stage: str, key: str) -> bool:
        """Whether the artifact is there, as far as is known."""
        place = self._place(stage, key)
        with self._reached():
            return place not in self._damaged and bool(self.fs.exists(f"{place}/{MANIFEST}"))

    def download(self, stage: str, key: str, folder: Path) -> bool:
        """Copies the artifact to `folder`; False, with a warning, where what is there is damaged.

        Raises:
            UserError: where the URL cannot be reached: better than hours of computing what may be there.
        """
        place = self._place(stage, key)
        log.info("%-24s downloading from %s", stage, self.url)
        shutil.rmtree(folder, ignore_errors=True)
        damage: str | None = "incomplete"
        try:
            with self._reached():
                damage = self._copy(place, folder) or verify(folder, key)
        finally:
            if damage:
                shutil.rmtree(folder, ignore_errors=True)
        if damage:
            log.warning("%s: %s; computing it again", self._shown(stage, key), damage)
            self._damaged.add(place)
        return damage is None

    def replace(self, stage: str, key: str) -> None:
        """What is there is not what is wanted: the next artifact of this key is uploaded in its place."""
        self._damaged.add(self._place(stage, key))

    def mirror(self, artifact: Artifact) -> None:
        """Uploads the artifact if it is not there. Failing is a warning: it is safe here, and tried again next time."""
        place = self._place(artifact.stage, artifact.key)
        try:
            if self.has(artifact.stage, artifact.key):
                return
            for name in (*artifact.manifest["files"], MANIFEST):
                self.fs.makedirs(f"{place}/{name}".rpartition("/")[0], exist_ok=True)
                self.fs.put_file(str(artifact.path / name), f"{place}/{name}")
            self._damaged.discard(place)
        except Exception as error:  # every protocol's package has errors of its own
            shown = self._shown(artifact.stage, artifact.key)
            log.warning("%s: not uploaded (%s); the next run tries again", shown, _line(error))

    def _copy(self, place: str, folder: Path) -> str | None:
        """What is wrong with the remote artifact as a whole, if anything."""
        try:
            manifest = self.fs.cat_file(f"{place}/{MANIFEST}")
            names = list(json.loads(manifest)["files"])
        except (ValueError, KeyError, TypeError):
            return "unreadable manifest"
        for name in names:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                return f"{name} does not belong there"  # nor anywhere else on this machine
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                self.fs.get_file(f"{place}/{name}", str(folder / name))
            except FileNotFoundError:
                return f"{name} is missing"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).write_bytes(manifest)
        return None

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # every protocol's package has errors of its own
            raise UserError(f"store={self.url}: cannot be reached ({_line(error)})") from error

    def _place(self, stage: str, key: str) -> str:
        return f"{self.root}/{stage}/{key}"

    def _shown(self, stage: str, key: str) -> str:
        return f"{self.url.rstrip('/')}/{stage}/{key}"


def _package(url: str) -> str:
    """The distribution that speaks a URL's protocol: s3fs for s3://."""
    return str(known_implementations[urlsplit(url).scheme]["class"]).split(".")[0]


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
