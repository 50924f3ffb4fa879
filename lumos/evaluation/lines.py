"""A results file of one JSON object a line, which survives being interrupted in the middle of one."""

import json
from pathlib import Path
from typing import Any


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a results file; a last one that was cut off is dropped. ValueError for another file."""
    if not path.exists():
        return []
    try:
        return [dict(json.loads(line)) for line in path.read_text("utf-8").split("\n")[:-1]]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} must have a JSON object a line, got something else ({error}); use another folder") from None


def add_line(path: Path, line: dict[str, Any]) -> None:
    """Add a line; what an interruption has left of an earlier one goes first."""
    text = path.read_text("utf-8") if path.exists() else ""
    if text and not text.endswith("\n"):
        path.write_text(text[: text.rfind("\n") + 1], "utf-8")
    with open(path, "a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
