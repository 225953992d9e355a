"""What the runner asks of a chapter's own process: which modules it loaded, which records it wrote."""
from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

_written: set[str] = set()


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    # Records are written beside their place and then renamed.
    if event == "os.rename" and str(arguments[1]).endswith(".json"):
        _written.add(str(arguments[1]))


def begin() -> None:
    """Watch, from before the first cell."""
    sys.addaudithook(_watch)


def seen() -> dict[str, Any]:
    """The modules of `detcore` that are loaded, the JSON files that were written, the machine."""
    loaded = sorted(name for name in sys.modules if name.partition(".")[0] == "detcore")
    machine = None
    if "torch" in sys.modules:
        from detcore.records import hardware

        machine = hardware().model_dump()
    return dict(modules=loaded, written=sorted(_written), machine=machine)


def end(path: str) -> None:
    """Write to a file what has been seen, after the last cell."""
    Path(path).write_text(json.dumps(seen()))
