"""The exception for errors that a user can cause; any other exception is a bug of ours."""

from dist_bert.common.redaction import redacted


class UserError(ValueError):
    """An error in the input, a file or the configuration.

    The message has the name as typed, the value, the rule and the remedy, in one line. Scripts
    print it without a traceback and exit with code 2 (see `dist_bert.common.cli`). Credentials in
    it are redacted, so it can be shown, logged and gathered from other ranks unchanged.
    """

    def __init__(self, message: str) -> None:
        super().__init__(redacted(message))


class NodeError(UserError):
    """An error, or an outage, that may occur on some nodes of a job only.

    Every rank that meets it prints it and ends the job: the others may be waiting for this rank.
    """
