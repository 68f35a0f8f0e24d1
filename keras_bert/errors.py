"""The error types a user can meet, each with the exit code a command ends with.

Every message is one line: what is wrong, where (file, row, value), and what to do about it.
Anything else that escapes a command is a defect of ours and ends with exit code 1 and a traceback.
"""


class KerasBertError(Exception):
    """Base of the errors below; commands print the message alone and exit with `exit_code`."""

    exit_code = 1


class ConfigError(KerasBertError, ValueError):
    """A flag, an option or a combination of them cannot be used."""

    exit_code = 2


class DataError(KerasBertError, ValueError):
    """An input file, row, label or text cannot be used."""

    exit_code = 3


class DivergedError(KerasBertError, ArithmeticError):
    """Training produced a loss or gradient that is not a number."""

    exit_code = 4


class CheckpointError(KerasBertError, ValueError):
    """A checkpoint, run directory or exported model cannot be read or does not fit."""

    exit_code = 5


class Stopped(KerasBertError):
    """A run was told to stop, by a signal or by its time limit, and has saved what it takes to go on.

    Args:
        exit_code: 143 after SIGTERM, 130 after SIGINT, 75 at the time limit, 0 after a dry run.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
