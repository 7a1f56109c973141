"""The one exception for what a user can cause; anything else that is raised is our own mistake."""

from dist_bert.common.redaction import redacted


class UserError(ValueError):
    """A mistake in the input, a file or the configuration.

    The message has the name as typed, the value, the rule and the remedy, in one line. Scripts
    print it without a traceback and exit with code 2 (see `dist_bert.common.cli`). Credentials in
    it are redacted, so that it may be shown, logged and gathered from other ranks as it is.
    """

    def __init__(self, message: str) -> None:
        super().__init__(redacted(message))


class NodeError(UserError):
    """A mistake, or an outage, that other nodes of a job may not meet.

    Shown by every rank that meets it, and it ends the job: the others may wait for this rank.
    """
