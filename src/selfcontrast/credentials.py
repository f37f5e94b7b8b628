"""Credentials in settings: refused, and taken out of the files that Hydra has written by then.

Settings are recorded: in `.hydra`, in W&B's config, in manifests and reports. A key comes from the environment alone.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfcontrast.errors import UserError

MASK = "***"
# The part before "@" is a container or an account there, or a user whose key lies elsewhere.
NAMED = (
    "abfs",
    "abfss",
    "adl",
    "wasb",
    "wasbs",
    "ssh",
    "sftp",
    "scp",
    "git",
    "git+ssh",
    "hdfs",
    "webhdfs",
    "smb",
    "gs",
)
USER = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]*)://([^/?#\s@]*)@")
QUERY = re.compile(
    r"[?&;][\w.-]*?(?:key|token|secret|passw(?:or)?d|pwd|sig|signature|auth|credentials?)=([^&;#\s]+)", re.IGNORECASE
)


def secrets_in(text: str) -> list[str]:
    """What in a text looks like a credential inside a URL."""
    if "://" not in text:
        return []
    users = [user for scheme, user in USER.findall(text) if user and (":" in user or scheme.lower() not in NAMED)]
    return [*users, *(value for value in QUERY.findall(text) if not value.startswith("${"))]


def refuse_credentials(config: Any, folder: Path | None = None) -> None:
    """Raise `UserError` for a setting with a credential in a URL, which is first masked in `folder/.hydra`."""
    for name, text in _texts(config, ""):
        if found := secrets_in(text):
            if folder is not None:
                _mask(folder / ".hydra", found)
            raise UserError(
                f"{name}: a URL with a credential in it, and settings are recorded: give it by the environment (a "
                "judge's and a generator's by the name of a variable, api_key_env)"
            )


def _texts(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key, name)
            yield from _texts(item, f"{name}.{key}".lstrip("."))
    elif isinstance(value, Sequence):
        for item in value:
            yield from _texts(item, name)


def _mask(folder: Path, secrets: Sequence[str]) -> None:
    for file in folder.glob("*.yaml"):
        text = file.read_text(encoding="utf-8")
        for secret in secrets:
            text = text.replace(secret, MASK)
        file.write_text(text, encoding="utf-8")
