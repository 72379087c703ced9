"""The one exception that means "the user can fix this"."""

from __future__ import annotations


class UserError(Exception):
    """Bad input. The message is one sentence: what is wrong and what to type next.

    Commands print it without a traceback and exit with code 2 (:func:`nndiffseg.cli.common.run`).
    """
