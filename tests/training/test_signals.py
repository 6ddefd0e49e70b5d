"""Ctrl-C between updates, once and twice."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from nnabla_dqa.training.signals import InterruptGuard


def test_the_first_is_noted_and_raised_by_check():
    before = signal.getsignal(signal.SIGINT)
    with InterruptGuard() as guard:
        guard.check()
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            guard.check()
    assert signal.getsignal(signal.SIGINT) is before


def test_the_second_is_raised_at_once():
    with InterruptGuard():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_in_another_thread_it_does_nothing():
    done = []

    def work():
        with InterruptGuard() as guard:
            guard.check()
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]
