"""What a run was made with: versions of the libraries and the commit of this code."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "libtpu")
_PACKAGE = Path(__file__).parent.parent
_ARCHIVED = _PACKAGE / "commit.txt"  # `git archive` writes the commit into it


def versions() -> dict[str, str]:
    """{library: version}, and Python's; a library that is not installed is not in it."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit of this code, with "+" behind it where files differ from it; "unknown" outside a repository."""
    try:
        said = subprocess.run(
            ["git", "-C", str(_PACKAGE), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
        return said.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        archived = _ARCHIVED.read_text().strip()
        return "unknown" if "$" in archived else archived
