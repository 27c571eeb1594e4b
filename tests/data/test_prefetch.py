from __future__ import annotations

import threading
import time

import pytest

from data.prefetch import Prefetch


def prefetch_threads() -> int:
    return sum(thread.name == "data-prefetch" for thread in threading.enumerate())


def test_results_come_in_order_and_the_end_is_the_end() -> None:
    with Prefetch(lambda step: step * 10, range(3, 8)) as loaded:
        assert list(loaded) == [30, 40, 50, 60, 70]
        assert list(loaded) == []
    assert prefetch_threads() == 0


def test_it_works_ahead_but_not_further_than_its_depth() -> None:
    started: list[int] = []
    with Prefetch(lambda step: started.append(step), range(100), depth=2) as loaded:
        next(loaded)
        time.sleep(0.3)
        assert 3 <= len(started) <= 4  # one taken, two waiting, one in hand


def test_waiting_is_measured() -> None:
    def slow(step: int) -> int:
        time.sleep(0.1)
        return step

    with Prefetch(slow, range(3)) as loaded:
        next(loaded)
        assert 0.05 < loaded.data_wait < 1
        time.sleep(0.3)
        next(loaded)
        assert loaded.data_wait < 0.05


def test_an_exception_arrives_in_its_turn() -> None:
    def breaks(step: int) -> int:
        if step == 2:
            raise ValueError("row 2")
        return step

    loaded = Prefetch(breaks, range(9))
    assert [next(loaded), next(loaded)] == [0, 1]
    with pytest.raises(ValueError, match="row 2"):
        next(loaded)
    with pytest.raises(StopIteration):
        next(loaded)
    loaded.close()
    assert prefetch_threads() == 0


def test_closing_early_ends_the_thread_and_the_iteration() -> None:
    loaded = Prefetch(lambda step: step, range(10**9))
    assert next(loaded) == 0
    loaded.close()
    loaded.close()
    assert prefetch_threads() == 0
    assert list(loaded) == []
