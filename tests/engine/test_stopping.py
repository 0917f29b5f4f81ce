"""Signals become requests, and everything is put back."""

import os
import signal

import pytest

from hydraprune.engine import check_stop, graceful, request_stop, stop_requested
from hydraprune.errors import Interrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_and_does_not_interrupt(number):
    with graceful():
        assert not stop_requested()
        check_stop()
        os.kill(os.getpid(), number)
        assert stop_requested()
        with pytest.raises(Interrupted, match="run the same command again"):
            check_stop()
    assert not stop_requested()


def test_a_second_sigint_interrupts_at_once():
    with graceful():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_second_sigterm_still_only_asks():
    with graceful():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop_requested()


def test_handlers_are_put_back_even_after_an_error():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(ZeroDivisionError), graceful():
        request_stop()
        _ = 1 / 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert not stop_requested()


def test_an_old_request_does_not_stop_new_work():
    with graceful():
        request_stop()
    with graceful():
        assert not stop_requested()


def test_a_stopped_run_exits_with_75_so_that_schedulers_try_again():
    assert Interrupted.exit_code == 75
