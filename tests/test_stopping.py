"""A signal ends the work in order, with a code of its own."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from nndiffseg.cli.common import run
from nndiffseg.errors import Stopped
from nndiffseg.stopping import noticed, raised


def test_a_command_that_is_terminated_cleans_up_and_says_so(capsys) -> None:
    cleaned = []

    def body(_) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            cleaned.append(True)

    assert run(body) == Stopped.code == 75
    assert capsys.readouterr().err == "error: stopped by SIGTERM.\n" and cleaned


def test_the_handlers_of_before_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with raised("SIGTERM"), noticed("SIGTERM") as inner:
        os.kill(os.getpid(), signal.SIGTERM)
    assert inner.signal == "SIGTERM" and signal.getsignal(signal.SIGTERM) is before


def test_other_threads_leave_the_handlers_alone() -> None:
    seen = []

    def work() -> None:
        with raised("SIGTERM"), noticed("SIGNONE") as request:
            seen.append(request.signal)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_children_die_of_the_signal_as_they_would_without() -> None:
    # As the processes of a pool, which is shut down by SIGTERM: they must not print a traceback.
    with raised("SIGTERM"):
        child = os.fork()
        if child == 0:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_children_have_no_handler_of_their_own() -> None:
    # Python's handlers wait for the interpreter: a child of a pool that waits for a lock would never end.
    with raised("SIGTERM"):
        with noticed("SIGTERM", "SIGUSR1"):
            child = os.fork()
            if child == 0:
                both = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1)]
                os._exit(0 if both == [signal.SIG_DFL] * 2 else 1)
            _, status = os.waitpid(child, 0)
        outer = os.fork()
        if outer == 0:
            os._exit(0 if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL else 1)
        _, second = os.waitpid(outer, 0)
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    assert (status, second) == (0, 0)


def test_a_stop_is_no_error_that_a_case_can_swallow() -> None:
    with pytest.raises(Stopped):
        try:
            raise Stopped("stopped by SIGTERM.")
        except Exception:
            pytest.fail("swallowed")
