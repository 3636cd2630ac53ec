# SPDX-License-Identifier: Apache-2.0
"""Thin face over core/clock; the arithmetic is tested in tests/libqos/core/test_clock.c."""

import errno
import signal
import threading
import time

import pytest

from libqos import clock


def test_the_clocks_are_those_of_the_system() -> None:
    for ours, theirs in (
        (clock.realtime_ns, time.CLOCK_REALTIME),
        (clock.tai_ns, time.CLOCK_TAI),
        (clock.monotonic_ns, time.CLOCK_MONOTONIC),
    ):
        before = time.clock_gettime_ns(theirs)
        assert before <= ours() <= time.clock_gettime_ns(theirs)
        assert before <= clock.read_ns(theirs)


def test_an_unknown_clock_is_an_error_with_its_number() -> None:
    with pytest.raises(clock.ClockError, match="clock 1000") as caught:
        clock.read_ns(1000)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(clock.ClockError):
        clock.sleep_until(0, 1000)


@pytest.mark.parametrize("spin_ns", [0, clock.SPIN_DEFAULT_NS])
@pytest.mark.parametrize("clockid", [clock.MONOTONIC, clock.REALTIME, clock.TAI])
def test_sleep_until_never_returns_early(clockid: int, spin_ns: int) -> None:
    deadline = clock.read_ns(clockid) + 1_000_000
    late = clock.sleep_until(deadline, clockid, spin_ns)
    assert late >= 0
    assert clock.read_ns(clockid) >= deadline + late


def test_a_deadline_that_has_passed_tells_how_late() -> None:
    assert clock.sleep_until(clock.monotonic_ns() - 5000) >= 5000
    assert clock.sleep_until(-1) > 0


class StopError(Exception):
    pass


def test_an_exception_of_a_signal_handler_ends_the_sleep() -> None:
    def stop(_signal: int, _frame: object) -> None:
        if not over.is_set():
            over.set()
            raise StopError

    main = threading.get_ident()
    asleep = threading.Event()
    over = threading.Event()

    def pester() -> None:
        # Again and again until the handler has run: the C call does not see a signal that comes just before it.
        asleep.wait()
        while not over.wait(0.005):
            signal.pthread_kill(main, signal.SIGUSR1)

    def sleep_an_hour() -> None:
        asleep.set()
        clock.sleep_until(clock.monotonic_ns() + 3600 * 10**9)

    pesterer = threading.Thread(target=pester)
    old = signal.signal(signal.SIGUSR1, stop)
    pesterer.start()
    try:
        with pytest.raises(StopError):
            sleep_an_hour()
    finally:
        pesterer.join()
        signal.signal(signal.SIGUSR1, old)


def test_what_is_no_phc_is_refused_by_name() -> None:
    for device, number in (("/dev/null", errno.ENOTTY), ("/dev/no-such-device", errno.ENOENT)):
        with pytest.raises(clock.ClockError, match=device) as caught:
            clock.Phc(device)
        assert caught.value.errno == number


@pytest.mark.needs_phc
def test_a_phc_can_be_read_until_it_is_closed() -> None:
    with clock.Phc("/dev/ptp0") as phc:
        before = phc.now_ns()
        assert phc.now_ns() >= before
    with pytest.raises(clock.ClockError):
        phc.now_ns()
