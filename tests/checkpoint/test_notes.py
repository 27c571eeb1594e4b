from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from base.errors import RunFailed, UmbelError
from checkpoint.verify import verify
from checkpoint.writer import commit, fail_share, patience, write_share
from support.portable_state import SAVE_ID, facts_of, make_state, save, share_of


def test_rank_0_waits_for_the_notes_of_the_others(checkpoints: Path) -> None:
    state = make_state()
    where = checkpoints, 7, SAVE_ID

    def late() -> None:
        time.sleep(0.1)
        write_share(*where, 1, 2, share_of(state, 1, 2), state.parameters)

    other = threading.Thread(target=late)
    other.start()
    write_share(*where, 0, 2, share_of(state, 0, 2), state.parameters)
    verify(commit(*where, 2, facts_of(state, 7, 2), wait=patience()))
    other.join()


def test_the_failure_of_another_rank_ends_the_save(checkpoints: Path) -> None:
    state = make_state()
    kept = save(checkpoints, state)
    where = checkpoints, 101, SAVE_ID
    write_share(*where, 0, 3, share_of(state, 0, 3), state.parameters)
    fail_share(*where, 2, 3, "its disk is full", 2)
    with pytest.raises(UmbelError, match="its disk is full") as caught:
        commit(*where, 3, facts_of(state, 101, 3), wait=lambda: pytest.fail("rank 1 was waited for"))
    assert caught.value.exit_code == 2
    assert os.listdir(checkpoints) == [kept.name]


def test_the_waiting_may_have_an_end(checkpoints: Path) -> None:
    state = make_state()
    where = checkpoints, 7, SAVE_ID
    write_share(*where, 0, 2, share_of(state, 0, 2), state.parameters)
    with pytest.raises(RunFailed, match=r"did not come within 0.1 s"):
        commit(*where, 2, facts_of(state, 7, 2), wait=patience(0.1))
    assert os.listdir(checkpoints) == []
