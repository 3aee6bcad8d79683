"""The training stages, by the names that configurations give them."""

from colajax.errors import UserError
from colajax.stages.ar import ARStage
from colajax.stages.base import Stage
from colajax.stages.joint import JointStage
from colajax.stages.llada import LLaDAStage
from colajax.stages.vae import VAEStage

STAGES = {"vae": VAEStage, "joint": JointStage, "ar": ARStage, "llada": LLaDAStage}


def stage_of(config) -> type[Stage]:
    """The class of config.stage. Raises UserError on a name that is not there."""
    if config.stage not in STAGES:
        raise UserError(f"config.stage is {config.stage!r}: expected one of {', '.join(STAGES)}")
    return STAGES[config.stage]
