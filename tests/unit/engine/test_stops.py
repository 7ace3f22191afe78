import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from vllm_edsd.engine.stops import Stops


@pytest.fixture(autouse=True)
def default():
    """SIGCONT has the default handler, before and after."""
    before = signal.signal(signal.SIGCONT, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGCONT, before)


def test_going_on_counts():
    stops = Stops()
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGCONT)
    assert stops.count == 2


def test_another_handler_stays():
    def other(*_):
        pass

    signal.signal(signal.SIGCONT, other)
    assert Stops().count == 0
    assert signal.getsignal(signal.SIGCONT) is other


def test_outside_the_main_thread_nothing_is_counted():
    with ThreadPoolExecutor(1) as pool:
        stops = pool.submit(Stops).result()
    assert signal.getsignal(signal.SIGCONT) == signal.SIG_DFL
    assert stops.count == 0
