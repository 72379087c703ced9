"""A message is one line of text, whatever it repeats of a foreign file."""

from __future__ import annotations

import pickle

from nndiffseg.cli.common import run
from nndiffseg.data.parallel import WorkerKilledError
from nndiffseg.errors import UserError


def test_foreign_text_in_a_message_neither_breaks_the_line_nor_controls_the_terminal(capsys) -> None:
    name = "a\nb\t\x1b[2Jc\0\ud800ä患"

    def body(_) -> None:
        raise UserError(f"There is no {name}; choose another.")

    assert run(body) == 2
    assert capsys.readouterr().err == "error: There is no a b \\x1b[2Jc\\x00\\ud800ä患; choose another.\n"


def test_messages_pass_through_worker_processes_unchanged() -> None:
    for error in (UserError("one\ntwo"), WorkerKilledError("three")):
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error) and str(copy) == str(error) != "one\ntwo"
