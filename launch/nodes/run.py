"""Looking at nodes from outside: ask each, have them meet, judge, remember."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from base.devices import cuda_devices
from base.errors import UmbelError
from base.files import write_json
from configs.schema import Cluster, RunConfig
from launch.nodes.errand import Answers, Errand
from launch.nodes.facts import NodeFacts, from_json
from launch.nodes.judge import Limits, Looked, judge
from launch.nodes.meetings import Meetings, Met
from launch.nodes.probe import ASK, Ask
from launch.nodes.reference import History, history_of, usual
from launch.slurm import queries
from launch.supervise.place import Place
from record.events import next_attempt, utc_now
from record.folder import RunFolder

PROBE_SECONDS = 45.0
"""A node that has not answered by then has not passed."""

_PRINTED = 200
"""Last lines of what silent nodes printed, for the log."""


class Checked(NamedTuple):
    """Nodes that are fit, in their order; why the others are not; what the look took."""

    passing: list[str]
    failing: dict[str, str]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Survey:
    """All that was seen.

    Attributes:
        failing: why, by node.
        notes: what is worth a word and no reason, by node.
        general: the same of no single node.
        bandwidth: GB/s of an all-reduce over all nodes; None where there was none.
        printed: by nodes and Slurm, where some node gave no answer.
    """

    facts: dict[str, NodeFacts] = field(default_factory=dict)
    failing: dict[str, str] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    general: list[str] = field(default_factory=list)
    bandwidth: float | None = None
    printed: list[str] = field(default_factory=list)


def check_nodes(
    place: Place, config: RunConfig, folder: RunFolder, nodes: Sequence[str], log: Path
) -> Checked:
    """Which of a run's nodes are fit to be started on, spares among them.

    Costs seconds in a Slurm job; next to nothing on this machine, where only its GPUs are asked. What is
    found out is added to ``log``, too.

    Raises:
        UmbelError: the run's folder cannot be written, or nothing can be started.
    """
    began = time.monotonic()
    if not config.supervision.preflight or not _is_worth_it(place, config.cluster):
        return Checked(list(nodes), {}, 0.0)
    for leftover in folder.control.glob("preflight-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    asked = Asked(
        place=place,
        cluster=config.cluster,
        run=folder,
        folder=folder.control / f"preflight-{secrets.token_hex(4)}",
        history=history_of(folder),
        attempt=next_attempt(folder),
        compute=place.job is not None and config.cluster.container is None,
    )
    found = survey(asked, nodes)
    with contextlib.suppress(OSError), open(log, "a") as file:
        file.writelines(f"{line}\n" for line in found.printed[-_PRINTED:])
        file.writelines(f"umbel: preflight: {line}\n" for line in lines(found))
    passing = [node for node in nodes if node not in found.failing]
    return Checked(passing, found.failing, time.monotonic() - began)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be looked at, and how.

    Attributes:
        run: whose disk the nodes look at.
        folder: made for the answers and removed at the end; all nodes must share it.
        history: the nodes' earlier figures.
        attempt: the number of the start that comes after.
        compute: multiply matrices and all-reduce, too, which takes an import of torch.
    """

    place: Place
    cluster: Cluster
    run: RunFolder
    folder: Path
    history: History
    attempt: int = 1
    compute: bool = True


def survey(asked: Asked, nodes: Sequence[str]) -> Survey:
    """Look at nodes.

    Raises:
        UmbelError: as `check_nodes` does.
    """
    try:
        asked.folder.mkdir(parents=True)
        return _survey(asked, list(nodes), Errand(asked.place, asked.attempt))
    except OSError as error:
        where = str(error.filename or asked.folder)
        raise UmbelError(f"cannot be written ({error.strerror})", where=where) from error
    finally:
        shutil.rmtree(asked.folder, ignore_errors=True)


def lines(found: Survey) -> list[str]:
    """What is worth telling, a line each."""
    return [f"{node} fails: {words}" for node, words in found.failing.items()] + notes(found)


def notes(found: Survey) -> list[str]:
    """What is worth a word and no reason, a line each; of several nodes, once."""
    by_note: dict[str, list[str]] = {}
    for node, of_node in found.notes.items():
        for note in of_node:
            by_note.setdefault(note, []).append(node)
    return [*(f"{', '.join(nodes)}: {note}" for note, nodes in by_note.items()), *found.general]


def _survey(asked: Asked, nodes: list[str], errand: Errand) -> Survey:
    cpu = asked.cluster.device == "cpu"
    answers, limits, began = _ask(asked, nodes, errand, cpu)
    if answers.refused:  # of every node alike: the workers will hear why
        return Survey(general=["nothing could be started on the nodes: they were not looked at"])
    seen, strange = _read(answers, nodes, began)
    verdict = judge(seen, limits, asked.history.rates)
    failing = {**verdict.words(), **answers.silent, **strange}
    fit = [node for node in nodes if node not in failing]
    met = _meet(asked, fit, errand, cpu, seen) if asked.compute and len(fit) > 1 else Met({}, None, [])
    failing |= met.failing
    _remember(asked.history, seen, failing, met, len(fit))
    return Survey(
        facts={node: each.facts for node, each in seen.items()},
        failing={node: failing[node] for node in nodes if node in failing},
        notes=verdict.notes,
        general=met.notes,
        bandwidth=met.rate,
        printed=answers.printed if answers.silent else [],
    )


def _read(answers: Answers, nodes: list[str], asked: float) -> tuple[dict[str, Looked], dict[str, str]]:
    """What the nodes tell, in their order, and those whose answer says something else."""
    seen, strange = dict[str, Looked](), dict[str, str]()
    for node in nodes:
        if node in answers.found:
            content, when = answers.found[node]
            try:
                seen[node] = Looked(from_json(content), asked, when)
            except (TypeError, KeyError):
                strange[node] = "answers in another form: it sees other code"
    return seen, strange


def _ask(asked: Asked, nodes: list[str], errand: Errand, cpu: bool) -> tuple[Answers, Limits, float]:
    token, began = secrets.token_hex(8), time.time()
    ask = Ask(
        token=token,
        seconds=PROBE_SECONDS,
        cpu=cpu,
        compute=asked.compute,
        internet=asked.cluster.internet,
    )
    write_json(asked.folder / ASK, asdict(ask))
    module = ["launch.nodes.probe", str(asked.run.path.resolve()), str(asked.folder.resolve())]
    answers = errand.send(module, nodes, asked.folder, PROBE_SECONDS)
    limits = Limits(
        gpus=None if cpu else asked.cluster.devices_per_node,
        token=token,
        # A desktop's screen is on somebody's device; a job's devices are its own.
        taken=0.1 if asked.place.job is not None else 1.0,
    )
    return answers, limits, began


def _meet(asked: Asked, nodes: list[str], errand: Errand, cpu: bool, seen: dict[str, Looked]) -> Met:
    earlier = [usual(asked.history.bandwidths(node, seen[node].facts.device, len(nodes))) for node in nodes]
    known = [each for each in earlier if each is not None]
    folder = asked.folder.resolve()
    cpu = cpu or not all(seen[node].facts.gpus for node in nodes)
    median = statistics.median(known) if known else None
    return Meetings(errand, folder, _addresses(asked.place, nodes), cpu, median).hold(nodes)


def _addresses(place: Place, nodes: list[str]) -> dict[str, str]:
    """Names of nodes need not resolve; Slurm knows better."""
    known = dict.fromkeys(nodes, "127.0.0.1") if place.job is None else {node: node for node in nodes}
    if place.job is not None:
        with contextlib.suppress(UmbelError):
            known |= {node.name: node.address for node in queries.nodes() if node.name in known}
    return known


def _remember(
    history: History, seen: dict[str, Looked], failing: dict[str, str], met: Met, size: int
) -> None:
    """Only what is fit is a measure for later."""
    for node, each in seen.items():
        if node not in failing and each.facts.rates:
            history.remember(node, {
                "time": utc_now(), "device": each.facts.device, "rates": each.facts.rates,
                "bandwidth": met.rate, "size": size,
            })  # fmt: skip


def _is_worth_it(place: Place, cluster: Cluster) -> bool:
    """On this machine without GPUs there is nothing that a start does not show by itself."""
    return place.job is not None or (cluster.device != "cpu" and bool(cuda_devices()))
