"""What `support.processes.run_workers` starts: calls one function of one file and writes its result."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS)]


def main(call_path: str) -> None:
    call = json.loads(Path(call_path).read_text())
    spec = importlib.util.spec_from_file_location("called", call["file"])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["called"] = module
    spec.loader.exec_module(module)
    if call["gloo"]:
        from torch import distributed

        distributed.init_process_group("gloo")
    result = getattr(module, call["name"])(*call["args"])
    rank = os.environ["RANK"]
    Path(call_path).with_name(f"result-{rank}.json").write_text(json.dumps(result))
    if call["gloo"] and distributed.is_initialized():
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
