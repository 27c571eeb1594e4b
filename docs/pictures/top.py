"""Draw docs/pictures/top.svg: what `umbel top` shows of the runs in ./runs now.

python docs/pictures/top.py [RUN…]
"""

from __future__ import annotations

import re
import sys
from io import StringIO
from pathlib import Path

from rich.console import Console

from launch.screens.top import draw
from launch.top import Top
from record.folder import RunFolder

WIDTH, HEIGHT = 100, 26


def main() -> None:
    top = Top([RunFolder.find(name) for name in sys.argv[1:]] or None)
    top.ask_slurm()
    console = Console(record=True, width=WIDTH, force_terminal=True, highlight=False, file=StringIO())
    console.print(draw(top.frame(), WIDTH, HEIGHT))
    svg = console.export_svg(title="umbel top")
    # A picture asks no other server for its letters.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    Path(__file__).with_suffix(".svg").write_text(svg)


if __name__ == "__main__":
    main()
