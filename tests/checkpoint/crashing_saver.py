"""Saves checkpoints until it is killed; started by test_crash.py.

crashing_saver.py FOLDER rank R of N LOCK    one worker: for each line "STEP SEED SAVE_ID" have its background
                                             writer save the state of that seed, and tell the outcome
crashing_saver.py FOLDER every               die just before the n-th change of the disk, for every n
"""

from __future__ import annotations

import builtins
import fcntl
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from checkpoint.background import BackgroundWriter  # noqa: E402
from checkpoint.folders import steps  # noqa: E402
from checkpoint.messages import encode_outcome  # noqa: E402
from checkpoint.reader import StateReader, latest  # noqa: E402
from checkpoint.retention import Retention, prune  # noqa: E402
from checkpoint.verify import verify  # noqa: E402
from checkpoint.writer import clean  # noqa: E402
from support.portable_state import State, fill, job_of, make_state, save, share_of  # noqa: E402

CHANGES = ("open", "rename", "replace", "unlink", "rmdir", "mkdir", "fsync")
WORLD_SIZE = 2
KEPT = 2


def state_of(seed: int) -> State:
    """Odd seeds are larger: the arena grows, and leftovers of one are no state of the other."""
    return make_state(seed, {"wte.weight": [60, 50 + 50 * (seed % 2)], "h.0.bias": [5]})


def seed_of(folder: Path) -> int:
    """The seed by which the state in a checkpoint was made, after comparing all of it."""
    with StateReader(folder) as reader:
        seed = reader.manifest["tokens"]
        state = state_of(seed)
        assert reader.manifest["parameters"] == state.parameters, folder
        for (name, kind), values in state.flat.items():
            assert reader.read(name, kind).tobytes() == values.tobytes(), (folder, name, kind)
    return seed


def work(checkpoints: Path, rank: int, world_size: int, lock: Path) -> None:
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT)
    if rank == 0:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    writer = BackgroundWriter([descriptor] if rank == 0 else [])
    print("ready", flush=True)
    for line in sys.stdin:
        step, seed, save_id = line.split()
        state = state_of(int(seed))
        slots = fill(writer.arena, share_of(state, rank, world_size))
        arguments = checkpoints, state, slots, rank, world_size, int(step), save_id, KEPT
        writer.submit(job_of(*arguments, tokens=int(seed)))
        print("submitted", flush=True)
        outcome = writer.wait()
        assert outcome is not None
        sys.stdout.buffer.write(encode_outcome(outcome))
        sys.stdout.flush()
    writer.close()


def write(checkpoints: Path, step: int, seed: int) -> None:
    save(checkpoints, state_of(seed), step, WORLD_SIZE, tokens=seed)


def die_before_change(number: int) -> None:
    """Let this process vanish, as by kill -9, at its n-th system call that changes the disk."""
    left = number

    def counting(change: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os._exit(9)
            return change(*args, **kwargs)

        return counted

    for name in CHANGES:
        setattr(os, name, counting(getattr(os, name)))
    builtins.open = counting(builtins.open)  # type: ignore[assignment]


def in_child(action: Callable[[], object]) -> int:
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        action()
        os._exit(0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)


def die_everywhere(work: Path) -> None:
    """Save one step anew and prune, killed at every point; the start after it is killed at every third."""
    for number in range(1000):
        checkpoints = work / str(number)
        write(checkpoints, 1, 10)
        write(checkpoints, 2, 20)

        def victim(checkpoints: Path = checkpoints, number: int = number) -> None:
            die_before_change(number)
            write(checkpoints, 2, 21)
            prune(checkpoints, Retention(keep_last=1))

        def restart(checkpoints: Path = checkpoints, number: int = number) -> None:
            die_before_change(number // 3)
            clean(checkpoints)

        code = in_child(victim)
        assert code in (0, 9), code
        assert in_child(restart) in (0, 9)
        found = latest(checkpoints, verify="full")
        assert found is not None, f"nothing is left after a death at change {number}"
        clean(checkpoints)
        found = latest(checkpoints, verify="full")
        assert found == checkpoints / "step-00000002", (number, found)
        assert seed_of(found) in ((20, 21) if code else (21,)), number
        for folder in steps(checkpoints).values():
            verify(folder)
        assert all(name.startswith("step-") for name in os.listdir(checkpoints)), os.listdir(checkpoints)
        shutil.rmtree(checkpoints)
        if code == 0:
            print(number)
            return


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    if sys.argv[2] == "every":
        die_everywhere(folder)
    else:
        work(folder, int(sys.argv[3]), int(sys.argv[5]), Path(sys.argv[6]))
