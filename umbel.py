"""The command ``umbel``. Makes sure that Umbel's own packages are the ones imported, then runs the CLI."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

ROOMS = ("base", "configs", "record", "data", "checkpoint", "train", "hub", "launch")
HOME = Path(__file__).resolve().parent


def shadowed() -> tuple[str, str] | None:
    """The first of our packages that Python would take from elsewhere, and the file it would take.

    Our packages have common names, and a ``data.py`` beside a script or in site-packages hides ours.
    """
    for room in ROOMS:
        try:
            spec = importlib.util.find_spec(room)
        except ValueError:
            spec = None
        if spec is None:
            return room, "nothing at all"
        places = list(spec.submodule_search_locations or [])
        found = Path(spec.origin or (places[0] if places else "."))
        if found.resolve() != HOME / room / "__init__.py":
            return room, str(found)
    return None


def main() -> None:
    """Run the command line and exit with its code: 0 done, 1 the work failed, 2 bad input, 130 Ctrl-C."""
    if (fault := shadowed()) is not None:
        _fail(
            f"import {fault[0]} finds {fault[1]} in place of {HOME / fault[0]}; "
            "rename that file, or run from another folder",
            2,
        )
    from typer import Abort, TyperException

    from base.errors import UmbelError

    try:
        from launch.cli import app

        raise SystemExit(app(prog_name="umbel", standalone_mode=False))
    except UmbelError as error:
        _tell(error, str(error), error.exit_code)
    except (KeyboardInterrupt, Abort):
        raise SystemExit(130) from None
    except TyperException as error:
        _fail(*_misuse(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _tell(error, where + (error.strerror or str(error)), 1)
    except Exception as error:
        name = type(error).__name__
        _tell(error, f"{name}: {error}; a fault of Umbel's own: UMBEL_DEBUG=1 shows where", 1)


def _misuse(error: Any) -> tuple[str, int]:
    """One line and the exit code for arguments that Typer refuses; a group without a verb shows its help."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        raise SystemExit(error.exit_code)
    command = error.ctx.command_path if error.ctx else "umbel"
    return f"{error.format_message().rstrip('.')}; {command} --help", error.exit_code


def _tell(error: Exception, text: str, exit_code: int) -> None:
    if os.environ.get("UMBEL_DEBUG") == "1":
        raise error
    _fail(text, exit_code)


def _fail(text: str, exit_code: int) -> None:
    print("umbel: error: " + " ".join(text.splitlines()), file=sys.stderr)
    raise SystemExit(exit_code)


if __name__ == "__main__":
    main()
