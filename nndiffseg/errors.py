"""The exceptions that are no bugs: one that the user can fix, and one that says that somebody asked to stop."""

from __future__ import annotations


class UserError(Exception):
    """Bad input. The message is one sentence: what is wrong and what to type next.

    Commands print it without a traceback and exit with code 2 (:func:`nndiffseg.cli.common.run`). What it repeats of a foreign
    file, such as a name, cannot break the line or control the terminal.
    """

    def __init__(self, message: str = ""):
        super().__init__("".join(map(_printable, message)))


def _printable(character: str) -> str:
    return character if character.isprintable() else " " if character.isspace() else ascii(character)[1:-1]


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGUSR1 ended the work, as a scheduler sends them before the time is over.

    Commands print its sentence and exit with :attr:`code`.
    """

    #: EX_TEMPFAIL of sysexits.h, "try again later": a job script can queue the job again on it
    code = 75
