"""Draw docs/pictures/demo.svg: the last screen of a finished `umbel demo`, found in ./runs.

python docs/pictures/demo.py [NAME]
"""

from __future__ import annotations

import re
import sys
from io import StringIO
from pathlib import Path

from rich.console import Console

from configs.compose import load
from launch.demo import what_it_learned
from launch.screens.demo import learned_screen
from record.folder import RunFolder

WIDTH = 84


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "demo"
    learned = what_it_learned(load(RunFolder.find(name).run_yaml))
    console = Console(record=True, width=WIDTH, force_terminal=True, highlight=False, file=StringIO())
    console.print("[green]$[/] [bold]make demo[/]")
    console.rule(f"[bold]1[/] train on 2 processes, ZeRO stage 2, to step {learned.handover_step}")
    console.rule("[bold]2[/] go on with 1 process, ZeRO stage 3: same run, same numbers")
    console.print(learned_screen(learned))
    svg = console.export_svg(title="umbel demo")
    # A picture asks no other server for its letters.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    Path(__file__).with_suffix(".svg").write_text(svg)


if __name__ == "__main__":
    main()
