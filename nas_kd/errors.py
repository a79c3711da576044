"""The exceptions of nas-kd.

    NasKdError                exit code 1: the work was started and failed
    |- TrialFailed            one trial ended without values; carries a short machine-readable reason
    |  `- EarlyStop           early stopping ended it
    |- Stopped                the user stopped it (Ctrl-C); exit code 130, as a shell has it
    `- UsageError             exit code 2: the input is at fault; nothing was started
       |- SpaceError          a search space or arch that breaks a rule
       |- StudyError          a study file, study folder or storage that cannot serve
       |- DataError           images that are missing, unreadable or too small
       |- TeacherError        a teacher whose weights cannot be had
       |- MeterError          energy was asked for and no meter can measure it
       `- BitstreamError      a compressed file that is malformed, truncated or another student's

Every message is one line: what is wrong, the value, the rule, and what to do.
"""


class NasKdError(Exception):
    """The work was started and failed."""

    exit_code = 1


class TrialFailed(NasKdError):
    """One trial ended without values.

    Args:
        reason: short and machine-readable, such as ``nan`` or ``no_overlap``.
        message: one line for people.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        """Between processes an exception travels by its arguments."""
        return type(self), (self.reason, str(self))


class Stopped(NasKdError):
    """The user stopped the work; what is finished is kept."""

    exit_code = 130


class EarlyStop(TrialFailed):
    """Early stopping ended a trial; its checkpoint is kept."""


class UsageError(NasKdError):
    """The input is at fault; nothing was started."""

    exit_code = 2


class SpaceError(UsageError):
    """A search space or an arch breaks a rule."""


class StudyError(UsageError):
    """A study file, study folder or storage cannot serve."""


class DataError(UsageError):
    """Images are missing, unreadable or too small."""


class TeacherError(UsageError):
    """A teacher's weights cannot be had."""


class MeterError(UsageError):
    """Energy was asked for and no meter can measure it."""


class BitstreamError(UsageError):
    """A compressed file is malformed, truncated or another student's."""
