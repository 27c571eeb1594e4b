"""What is about to be submitted, on one screen, before anybody says yes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from base.files import human_bytes
from launch.screens.numbers import duration, short

if TYPE_CHECKING:
    from launch.slurm.prospect import Prospect


def submission(prospects: list[Prospect]) -> RenderableType:
    """The facts of one run, or of the first of a sweep and a line for the others; problems in red."""
    first = prospects[0]
    made = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, fact in _facts(first):
        made.add_row(name, Text(fact))
    if len(prospects) > 1:
        names = f"{first.folder.name} … {prospects[-1].folder.name}"
        made.add_row("sweep", Text(f"{len(prospects)} runs, a job each: {names}"))
    made.add_row("node-hours", Text(_node_hours(prospects)))
    problems = dict.fromkeys(problem for prospect in prospects for problem in prospect.problems)
    warnings = dict.fromkeys(warning for prospect in prospects for warning in prospect.warnings)
    notes = [Text.assemble(("✗ ", "bold red"), problem) for problem in problems]
    notes += [Text.assemble(("warning: ", "yellow"), warning) for warning in warnings]
    return Group(made, *notes)


def changes(prospect: Prospect) -> str | None:
    """One line on the defining keys that are about to change; None for none."""
    if not prospect.changed:
        return None
    return "changes " + ", ".join(f"{key} from {old} to {new}" for key, old, new in prospect.changed)


def _facts(prospect: Prospect) -> list[tuple[str, str]]:
    facts = [
        ("run", f"{prospect.folder.name} in {prospect.folder.path}"),
        (
            "code",
            prospect.request.code.name + (", with changes not committed" if prospect.uncommitted else ""),
        ),
        ("memory", _memory(prospect)),
        ("disk", _disk(prospect)),
        ("nodes", _nodes(prospect)),
        ("time", _time(prospect)),
    ]
    if (changed := changes(prospect)) is not None:
        facts.insert(1, ("config", changed))
    return facts


def _memory(prospect: Prospect) -> str:
    plan = prospect.plan
    if plan.memory_available is None:
        return f"{human_bytes(plan.memory_needed)} est. per process; cluster.memory_gb says what there is"
    there = human_bytes(plan.memory_available)
    return f"{human_bytes(plan.memory_needed)} est. of {there} per process{_cross(not plan.fits)}"


def _disk(prospect: Prospect) -> str:
    plan = prospect.plan
    text = f"{human_bytes(plan.disk_free)} free, needs {human_bytes(plan.disk_needed)}"
    text += _cross(plan.disk_needed > plan.disk_free)
    if prospect.files_free is not None:
        text += f"; {short(prospect.files_free)} files free, needs about {short(prospect.files_needed)}"
        text += _cross(prospect.files_needed > prospect.files_free)
    return text


def _nodes(prospect: Prospect) -> str:
    cluster, per_node = prospect.config.cluster, prospect.request.processes_per_node
    text = f"{cluster.nodes}" + (f" + {cluster.spare_nodes} spare" if cluster.spare_nodes else "")
    text += f" of {prospect.known.partition.name}" if prospect.known else ""
    text += f", {per_node} {'process' if per_node == 1 else 'processes'} each"
    without = [*cluster.slurm.exclude, *(f"{node} (blamed for faults)" for node in prospect.blamed)]
    return text + (f"; without {', '.join(without)}" if without else "")


def _time(prospect: Prospect) -> str:
    slurm = prospect.config.cluster.slurm
    seconds = prospect.job_seconds
    text = f"{duration(seconds)} a job" if seconds is not None else "as long as the site allows"
    text += f", {slurm.jobs} jobs one after another" if slurm.jobs > 1 else ""
    text += f"; warned {duration(prospect.request.grace)} before the end"
    if prospect.starts is None:
        return text
    return text + (
        f"; could start in {duration(prospect.starts)}" if prospect.starts > 5 else "; could start now"
    )


def _node_hours(prospects: list[Prospect]) -> str:
    hours = [prospect.node_hours for prospect in prospects]
    known = [each for each in hours if each is not None]
    return f"{sum(known):,.1f} at most" if len(known) == len(hours) else "not known: no time limit is set"


def _cross(wrong: bool) -> str:
    return " ✗" if wrong else ""
