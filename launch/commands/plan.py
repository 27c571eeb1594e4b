"""umbel plan."""

from __future__ import annotations

from typing import Annotated

import typer

from launch.options import ConfigDir, Json, Overrides


def plan(
    overrides: Overrides = None,
    config_dir: ConfigDir = None,
    whole: Annotated[bool, typer.Option("--config", help="Print the whole resolved config too.")] = False,
    json: Json = False,
) -> None:
    """Say what a run would be and need: parameters, memory, tokens, disk, time. Starts nothing."""
    import yaml

    from configs.compose import compose
    from configs.plain import to_dict
    from launch.devices import world_size
    from launch.plan import make_plan, render
    from launch.preflight import check_same_run
    from launch.screens.console import out, print_json
    from launch.screens.differences import differences_table
    from record.folder import RunFolder

    config = compose(overrides or [], config_dir)
    made = make_plan(config, world_size(config))
    differences = check_same_run(config, RunFolder.of(config))
    if json:
        print_json({**made.as_json(), "config": to_dict(config), "differs": differences})
        return
    if whole:
        out.print(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True), markup=False)
    out.print(render(made))
    if differences:
        out.print(f"\n{RunFolder.of(config).path} belongs to another run; launch would refuse:", markup=False)
        out.print(differences_table(differences))
