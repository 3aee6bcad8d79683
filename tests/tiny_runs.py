"""Small trainings for tests: the shipped quickstart configurations, shrunk by command-line overrides."""

from pathlib import Path

from colajax.train.config import load_config

ROOT = Path(__file__).parent.parent
SEQUENCE_LENGTH = 32
RUN = (
    "batch_size=8", f"sequence_length={SEQUENCE_LENGTH}", "total_steps=12", "log_every=1", "eval_every=5",
    "checkpoint_every=4", "eval_rows=12", "optimizer.warmup_steps=3", "vae.dim=32", "vae.ffn_dim=48", "vae.num_heads=2",
    "vae.latent_dim=4",
)  # fmt: skip
DIT = (
    "dit.txt_dim=32", "dit.emb_dim=16", "dit.heads=2", "dit.head_dim=16", "dit.rope_dim=8", "dit.num_layers=1",
    "dit.txt_in_channels=4", "dit.txt_out_channels=4",
)  # fmt: skip


def spec(stage: str) -> str:
    return f"{ROOT}/configs/cola_{stage}.py:quickstart"


def overrides(stage: str) -> tuple[str, ...]:
    return RUN + (DIT if stage == "joint" else ())


def tiny_config(stage: str, *more: str):
    """The locked configuration of `stage` ("vae" or "joint") after RUN, DIT and `more`."""
    return load_config(spec(stage), [*overrides(stage), *more])
