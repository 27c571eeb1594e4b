"""Where every process of a run stands in its code: asked for through a file, read from files.

``control/stacks/<number>`` asks. The watcher of each node answers in ``logs/attempt-…/stacks-<number>/``: a
file for each rank, in the form of py-spy or of Python's faulthandler, and last ``<node>.json``.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from base.files import read_json
from record.folder import RunFolder

_HOME = Path(__file__).resolve().parents[2]
_ROOMS = ("base", "configs", "record", "data", "checkpoint", "train", "hub", "launch")
_THREAD = re.compile(r"^(?:Current t|T)hread .*$", re.MULTILINE)
_PY_SPY = re.compile(r"^ {4}(?P<function>\S.*?) \((?P<file>.*):(?P<line>\d+)\)$", re.MULTILINE)
_FAULTHANDLER = re.compile(r'^ {2}File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.*)$', re.MULTILINE)
_LIBRARIES = re.compile(r"^.*/(?:site-packages|dist-packages|python3\.\d+)/")


class Frame(NamedTuple):
    """One call. ``file`` is relative to where its package lies: the same on every node."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"

    @property
    def is_ours(self) -> bool:
        """Whether it is the project's code, or a user's: no library's."""
        return self.file.startswith("/") or self.file.partition("/")[0] in _ROOMS


GONE = "its process is gone"

Stack = tuple[Frame, ...]
"""The calls of a process's main thread, innermost first; empty where nothing could be seen."""


def request_stacks(folder: RunFolder, attempt: int) -> int:
    """Ask the watchers of an attempt for the stacks of all ranks; returns the request's number."""
    place = folder.control / "stacks"
    place.mkdir(exist_ok=True)
    number = max(_numbers(place), default=0) + 1
    while True:
        with contextlib.suppress(FileExistsError), open(place / str(number), "x") as file:
            file.write(str(attempt))
            return number
        number += 1


def requests(folder: RunFolder, attempt: int) -> Iterator[int]:
    """The numbers of an attempt's requests."""
    place = folder.control / "stacks"
    for number in sorted(_numbers(place)):
        with contextlib.suppress(OSError):
            if (place / str(number)).read_text() == str(attempt):
                yield number


def stacks_folder(folder: RunFolder, attempt: int, number: int) -> Path:
    """Where the answers to a request lie."""
    return folder.rank_log(attempt, 0).parent / f"stacks-{number}"


def answered(place: Path, nodes: Sequence[str]) -> bool:
    """Whether the watchers of all these nodes have answered."""
    return all((place / f"{node}.json").exists() for node in nodes)


def how(place: Path) -> dict[int, str]:
    """Rank → by what means its stack was taken, or why it was not, as far as nodes have answered."""
    told: dict[int, str] = {}
    for file in place.glob("*.json"):
        with contextlib.suppress(OSError, ValueError):
            told.update({int(rank): words for rank, words in read_json(file).items()})
    return told


def rank_file(place: Path, rank: int) -> Path:
    return place / f"rank-{rank:05d}.txt"


def read_stacks(place: Path) -> dict[int, Stack]:
    """Rank → stack, of those that are there."""
    stacks = {}
    for file in sorted(place.glob("rank-?????.txt")):
        with contextlib.suppress(OSError):
            stacks[int(file.stem.partition("-")[2])] = parse(file.read_text(errors="replace"))
    return stacks


def parse(text: str) -> Stack:
    """The main thread of a dump by ``py-spy dump`` or by faulthandler."""
    headers = list(_THREAD.finditer(text))
    if not headers:
        return ()
    # py-spy names it; faulthandler goes from the newest thread to the oldest.
    main = next((header for header in headers if header[0].endswith('"MainThread"')), headers[-1])
    end = next((header.start() for header in headers if header.start() > main.start()), len(text))
    body = text[main.end() : end]
    form = _PY_SPY if _PY_SPY.search(body) else _FAULTHANDLER
    return tuple(
        # py-spy writes a function's qualified name, faulthandler the last part of it.
        Frame(_short(match["file"]), int(match["line"]), match["function"].rpartition(".")[2])
        for match in form.finditer(body)
    )


def _short(file: str) -> str:
    """Without what differs from node to node: where the project or the libraries lie."""
    if (short := _LIBRARIES.sub("", file)) != file:
        return short
    with contextlib.suppress(ValueError):
        return str(Path(file).relative_to(_HOME))
    return file


def _numbers(place: Path) -> list[int]:
    return [int(file.name) for file in place.glob("[0-9]*") if file.name.isdigit()]
