"""Links from a report to files of its run; results.json is untrusted, so no other link is made."""

from pathlib import PurePosixPath
from urllib.parse import quote


def artefact_href(path: str | None) -> str | None:
    """Return the relative URL of a file of the run, or None for a path that is absolute, climbs or has a scheme."""
    if not path:
        return None
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or ":" in path:
        return None
    return quote(path)
