"""umbel plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from launch.options import ConfigDir, Json, Overrides

if TYPE_CHECKING:
    from launch.slurm.prospect import Prospect


def plan(
    overrides: Overrides = None,
    config_dir: ConfigDir = None,
    whole: Annotated[bool, typer.Option("--config", help="Print the whole resolved config too.")] = False,
    json: Json = False,
) -> None:
    """Say what a run would be and need: parameters, memory, tokens, disk, time. Starts nothing.

    With a cluster's profile it prints the very script that would be submitted.
    """
    import yaml

    from configs.compose import compose
    from configs.plain import to_dict
    from launch.devices import world_size
    from launch.paths import absolute_paths
    from launch.plan import make_plan, render
    from launch.preflight import check_same_run
    from launch.screens.console import out, print_json
    from launch.screens.differences import differences_table
    from record.folder import RunFolder

    config = absolute_paths(compose(overrides or [], config_dir))
    prospect = None
    if config.cluster.launcher == "slurm":
        from launch.slurm.prospect import look

        prospect = look(config, to_submit=False)
    made = prospect.plan if prospect else make_plan(config, world_size(config))
    differences = check_same_run(config, RunFolder.of(config))
    if json:
        facts = {**made.as_json(), "config": to_dict(config), "differs": differences}
        print_json(facts | (_submission(prospect) if prospect else {}))
        return
    if whole:
        out.print(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True), markup=False)
    out.print(render(made))
    if prospect:
        _show(prospect)
    if differences:
        out.print(f"\n{RunFolder.of(config).path} belongs to another run; launch would refuse:", markup=False)
        out.print(differences_table(differences))


def _submission(prospect: Prospect) -> dict[str, object]:
    return {
        "script": prospect.text,
        "node_hours": prospect.node_hours,
        "partition": prospect.known.partition.name if prospect.known else None,
    }


def _show(prospect: Prospect) -> None:
    from launch.screens.console import out, warn

    if prospect.known is None:
        warn("no Slurm here to ask: what is not set, the site decides")
    print()
    out.print("The script that umbel launch would submit", style="bold")
    print()
    # Not through rich: it would fold long lines, and this text is there to be copied.
    print(prospect.text.rstrip())
