"""Redacts secrets: credentials in URLs, and environment variables selected by name.

All output of a process passes through it: the settings that a run stores and prints, log lines,
error messages, tracebacks. Not for: secrets in a path, or in a command line, which anyone who lists
the processes of a host can read.
"""

import re
from typing import Any

_MARK = "***"
# Up to the last @ of the host. A password may contain unescaped @ and /: if the first colon is not
# followed by a port, up to the last @ of the URL.
_USER = re.compile(r"(?<=://)(?:[^\s/?#@:]+:(?!\d*(?:[/?#\s]|$))\S*|[^\s/?#]*)@")
# Everything after ? or #, such as the signature of a presigned URL; not the sentence's punctuation.
_SIGNATURE = re.compile(r"(://[^\s?#'\"<>]*[?#])[^\s'\"<>]+?(?=[):;,.]*(?:[\s'\"<>]|$))")
_SECRET_NAMES = (
    "AUTH", "COMMENT", "COOKIE", "CRED", "JWT", "KEY", "PASS", "PWD", "SECRET", "TOKEN",
)  # fmt: skip


def redacted(text: str) -> str:
    """A text with *** in place of the user, password and signature of every URL."""
    if "://" not in text:
        return text
    return _SIGNATURE.sub(rf"\g<1>{_MARK}", _USER.sub(f"{_MARK}@", text))


def redacted_values(value: Any) -> Any:
    """A JSON value with all its texts, also the names of fields, `redacted`."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {redacted(name): redacted_values(inner) for name, inner in value.items()}
    return [redacted_values(inner) for inner in value] if isinstance(value, list | tuple) else value


def is_secret(name: str) -> bool:
    """Whether the value of an environment variable must be hidden, by its name.

    A job's comment is free text, which may contain anything that a site requires.
    """
    return any(part in name.upper() for part in _SECRET_NAMES)
