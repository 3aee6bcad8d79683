"""The one line of a UserError, and of a training that is refused before it writes anything."""

from pathlib import Path

import pytest

from colajax.errors import UserError
from colajax.stages import stage_of
from colajax.train.loop import train


def error_of(function, *arguments) -> str:
    """The message of the UserError that the call ends with."""
    with pytest.raises(UserError) as error:
        function(*arguments)
    message = str(error.value)
    assert "\n" not in message
    return message


def error_of_training(config, workdir: Path) -> str:
    """The mistake that `train` reports, having written nothing."""
    before = _files(workdir)
    message = error_of(train, config, stage_of(config), workdir)
    assert _files(workdir) == before
    return message


def _files(workdir: Path) -> list[Path] | None:
    return sorted(workdir.rglob("*")) if workdir.exists() else None
