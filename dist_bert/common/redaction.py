"""The one rule of what is secret: credentials in URLs, and variables by their names.

All that leaves a process goes through it: the settings that a run keeps and prints, log lines,
error messages, tracebacks. Not for: secrets in a path, or in a command line, which whoever lists
the processes of a host can read anyway.
"""

import re
from typing import Any

_MARK = "***"
# Up to the last @ of the host. A password may hold @ and / as they are: where what follows the
# first colon is no port, up to the last @ of all.
_USER = re.compile(r"(?<=://)(?:[^\s/?#@:]+:(?!\d*(?:[/?#\s]|$))\S*|[^\s/?#]*)@")
# Whatever stands behind ? or #, as the signature of a presigned URL; not the sentence's own marks.
_SIGNATURE = re.compile(r"(://[^\s?#'\"<>]*[?#])[^\s'\"<>]+?(?=[):;,.]*(?:[\s'\"<>]|$))")
_SECRET_NAMES = (
    "AUTH", "COMMENT", "COOKIE", "CRED", "JWT", "KEY", "PASS", "PWD", "SECRET", "TOKEN",
)  # fmt: skip


def redacted(text: str) -> str:
    """A text with *** for the user, the password and the signature of every URL in it."""
    if "://" not in text:
        return text
    return _SIGNATURE.sub(rf"\g<1>{_MARK}", _USER.sub(f"{_MARK}@", text))


def redacted_values(value: Any) -> Any:
    """A JSON value with every text in it, but for the names of its fields, `redacted`."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {name: redacted_values(inner) for name, inner in value.items()}
    return [redacted_values(inner) for inner in value] if isinstance(value, list | tuple) else value


def is_secret(name: str) -> bool:
    """Whether the value of an environment variable is not to be shown, by its name.

    A job's comment is free text, in which people put whatever their site asks for.
    """
    return any(part in name.upper() for part in _SECRET_NAMES)
