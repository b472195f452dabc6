"""The few errors users meet. Each is one sentence (what was expected, what came), a hint, and an exit code.

Everything else that escapes is a bug of ours and may show a traceback.
"""

from __future__ import annotations


class HetserveError(Exception):
    """Base of all errors meant for a user's eyes.

    Args:
        message: one sentence: what was expected, and what came instead.
        hint: what to try, as one sentence or a command; empty when there is nothing useful to say.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def in_short(error: Exception) -> str:
    """An error's class and the first line of what it says: torch's of a GPU go on with what to try."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


class UsageError(HetserveError):
    """Flags or arguments that make no sense together (2, as click uses for usage)."""

    exit_code = 2


class SpecError(HetserveError):
    """A cluster, plan or workload file that is missing, malformed or contradicts itself."""

    exit_code = 3


class ModelError(HetserveError):
    """A model folder that is no model, is damaged, or is of a kind that is not supported."""

    exit_code = 4


class ResourceError(HetserveError):
    """Not enough memory, cores or pages; a port in use; a device that is absent."""

    exit_code = 5


class BaselineError(HetserveError):
    """The other system is not installed, did not start, or answered with errors."""

    exit_code = 6


class WorkerError(HetserveError):
    """A worker process died, froze or reported a failure."""

    exit_code = 7


class ReplayError(HetserveError):
    """A journal that cannot be read, or decisions that differ from the recorded ones."""

    exit_code = 8


class UnsupportedError(HetserveError):
    """A feature that exists elsewhere or is planned, but not here; the message says what is supported."""

    exit_code = 9


class BenchError(HetserveError):
    """A benchmark that ran but whose result may not be used (too many dropped, wrong outputs, no request completed)."""

    exit_code = 10


class ChecksumError(HetserveError):
    """A download that is not what was published; nothing of it is kept."""

    exit_code = 11
