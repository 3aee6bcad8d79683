"""What a run was made with: versions of the libraries and the commit of this code."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "libtpu")
_PACKAGE = Path(__file__).parent.parent
_ARCHIVED = "commit.txt"  # `git archive` writes the commit into it


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
    """The commit of this code, with "+" behind it where files differ from it; "unknown" outside its repository."""
    try:
        _git("ls-files", "--error-unmatch", _ARCHIVED)  # fails in a repository that holds an installation, ignored
        return _git("describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        file = _PACKAGE / _ARCHIVED
        archived = file.read_text().strip() if file.exists() else "$"
        return "unknown" if "$" in archived else archived


def _git(*command: str) -> str:
    said = subprocess.run(
        ["git", "-C", str(_PACKAGE), *command], capture_output=True, text=True, timeout=20, check=True
    )
    return said.stdout.strip()
