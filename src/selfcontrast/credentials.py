"""Refuse credentials in settings, and remove them from the files that Hydra has already written.

Settings are recorded in `.hydra`, W&B's config, manifests and reports. So keys may come only from the environment.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfcontrast.errors import UserError

MASK = "***"
# In URLs of these protocols, the part before "@" is a container, an account, or a user without a password.
PUBLIC_USER_PROTOCOLS = (
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
    """Return the parts of a text that look like credentials in a URL."""
    if "://" not in text:
        return []
    users = [
        user
        for scheme, user in USER.findall(text)
        if user and (":" in user or scheme.lower() not in PUBLIC_USER_PROTOCOLS)
    ]
    return [*users, *(value for value in QUERY.findall(text) if not value.startswith("${"))]


def refuse_credentials(config: Any, folder: Path | None = None) -> None:
    """Mask credentials in `folder/.hydra`, and raise `UserError` for a setting with a credential in a URL."""
    for name, text in _texts(config, ""):
        if secrets := secrets_in(text):
            if folder is not None:
                _mask(folder / ".hydra", secrets)
            raise UserError(
                f"{name}: the URL contains a credential, and settings are recorded. Put it into an environment "
                "variable (for judges and generators: the variable that api_key_env names)."
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
