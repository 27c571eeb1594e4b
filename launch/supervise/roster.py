"""Which of the nodes at hand a run works on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from base.errors import UmbelError
from configs.schema import RunConfig
from launch.supervise.alerts import Alerts
from launch.supervise.blame import choose, left_out
from launch.supervise.place import Place
from record.events import read_events, record_event
from record.folder import RunFolder


class Roster:
    """Chooses the nodes of each start: those that are there, pass a look at them, and are not blamed."""

    def __init__(self, folder: RunFolder, place: Place, alerts: Alerts) -> None:
        self.folder, self.place, self.alerts = folder, place, alerts
        self.unfit: list[str] = []

    def choose(self, config: RunConfig, log: Path) -> list[str] | None:
        """The nodes of the next start; None where too few are left."""
        return self._chosen(config, self._fit(config, self.place.nodes(), log))

    def enough(self, config: RunConfig) -> bool:
        """Whether there seem to be nodes for another start."""
        return self._chosen(config, self.place.nodes()) is not None

    def excluded(self, config: RunConfig) -> list[str]:
        """The nodes that the run is not to get again."""
        blamed = left_out(read_events(self.folder), config.supervision.blame)
        return sorted({*blamed, *self.unfit})

    def too_few(self, config: RunConfig) -> UmbelError:
        """The error of a run that cannot go elsewhere."""
        names = self.excluded(config)
        told = f"fewer than {config.cluster.nodes} nodes are fit"
        return UmbelError(
            f"{told}: without {', '.join(names)}" if names else told,
            where=self.folder.name,
            fix="look at logs/launch.log in its folder",
        )

    def _chosen(self, config: RunConfig, nodes: Sequence[str]) -> list[str] | None:
        return choose(nodes, config.cluster.nodes, read_events(self.folder), config.supervision.blame)

    def _fit(self, config: RunConfig, nodes: Sequence[str], log: Path) -> list[str]:
        from launch.nodes.run import check_nodes

        try:
            checked = check_nodes(self.place, config, self.folder, nodes, log)
        except UmbelError as error:
            record_event(self.folder, "warning", text=f"the nodes were not looked at: {error}")
            return list(nodes)
        for node, why in checked.failing.items():
            record_event(self.folder, "blamed", node=node, why=why)
            self.alerts.tell("blamed", f"{node}: {why}")
        self.unfit = sorted(checked.failing)
        return checked.passing
