"""Commands to type next, with the real names in them."""

from __future__ import annotations

from launch.screens.console import err

_AFTER_START = (
    ("how far it is", "umbel status {name}"),
    ("what it prints", "umbel logs {name} -f"),
    ("save and end it", "umbel stop {name}"),
)

AFTER_SUBMISSION = (
    ("when it starts", "umbel status {name}"),
    ("what it prints", "umbel logs {name} -f"),
    ("save and end it", "umbel stop {name}"),
    ("go on with it", "umbel resume {name}"),
    ("take it away", "umbel cancel {name}"),
)


def useful_commands(name: str, commands: tuple[tuple[str, str], ...] = _AFTER_START, **facts: object) -> None:
    """A small tree: what for, and what to type, with ``{name}`` and ``facts`` filled in."""
    width = max(len(purpose) for purpose, _ in commands)
    for number, (purpose, text) in enumerate(commands):
        branch = "└─" if number == len(commands) - 1 else "├─"
        err.print(
            f"{branch} {purpose.ljust(width)}  [cyan]{text.format(name=name, **facts)}[/]", soft_wrap=True
        )
