"""What is tried: a training, and where it runs."""

from pathlib import Path
from typing import NamedTuple

from etils import epath

from colajax.chaos.trainer import Trainer, remove


class Subject(NamedTuple):
    """A training. Of those that differ in nothing all that run well come to the same end."""

    command: tuple[str, ...]  # {workdir} stands for the workdir
    checkpoints: str  # folder of a workdir, with one a step
    result: str  # file of a workdir, which says how the training went
    processes: int = 1
    bucket: str = ""  # where the workdir is to be: gs://NAME; on local disk where there is none
    disk: int | None = None  # megabytes of the disk that it has to itself
    prefix: tuple[str, ...] = ()  # what starts the command in its place, and what it is given before it

    def start(self, folder: Path, name: str) -> Trainer:
        """Its workdir is NAME of the folder or the bucket, its output NAME.log of the folder; without what one that was
        interrupted left there."""
        remove(folder / name)
        (folder / f"{name}.log").unlink(missing_ok=True)
        return Trainer(
            self.command, epath.Path(self.bucket or folder) / name, folder / f"{name}.log", self.checkpoints,
            prefix=self.prefix, processes=self.processes, disk=self.disk,
        )  # fmt: skip

    def with_(self, **settings: object) -> "Subject":
        """A training of colajax with other settings of its configuration."""
        return self._replace(command=(*self.command, *(f"--config.{key}={value}" for key, value in settings.items())))
