"""Signals: the first is noted, the second acts, and handlers are given back."""

import signal
import threading

import pytest

from e3dsnn_jax.training.stopping import Interrupted, stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_is_noted(number: signal.Signals):
    before = signal.getsignal(number)
    with stop_on_signals() as stop:
        assert not stop
        signal.raise_signal(number)
        assert stop
        assert stop.signal_number == number
    assert signal.getsignal(number) is before


def test_second_ctrl_c_acts_at_once():
    with stop_on_signals() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_handlers_are_given_back_after_an_error():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="broken"), stop_on_signals():
        raise ValueError("broken")
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_are_left_alone():
    seen = []

    def work() -> None:
        with stop_on_signals() as stop:
            seen.append(bool(stop))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_exit_codes_are_those_of_shells():
    assert Interrupted("x", signal_number=signal.SIGINT).exit_code == 130
    assert Interrupted("x", signal_number=signal.SIGTERM).exit_code == 143
