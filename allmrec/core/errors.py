"""What an error means for the one who started the job: its exit code, on which a scheduler acts.

    1  another attempt may mend it: a timeout, a worker, a node or the store lost; or a defect of allmrec
    2  the user can mend it: config, inputs, models, credentials
    3  a quality gate of the nightly run fails; nothing is published
    4  another process has the run (`allmrec.publishing.lease`)

A plain ValueError is the user's to mend, and so is what the operating system refuses.
"""


class JobError(ValueError):
    """An error that is told in one line, of which another attempt may be free. Subclasses have codes of their own."""

    exit_code = 1


class JobTimeout(JobError):
    """A job takes longer than it may. One of its threads may still be waiting inside Ray."""


class StoreUnavailable(JobError):
    """The object store cannot be reached, or fails."""


class WorkersLost(JobError):
    """Workers, or the nodes that they ran on, died more often than a job recovers from."""


class QualityGateFailed(JobError):
    """A figure of a nightly run is beyond its quality gate."""

    exit_code = 3


def exit_code(error: BaseException) -> int:
    """The exit code that an error ends a job with."""
    if isinstance(error, JobError):
        return error.exit_code
    if isinstance(error, (ConnectionError, TimeoutError)):
        return 1
    return 2 if isinstance(error, (ValueError, OSError)) else 1
