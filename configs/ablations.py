"""The paper's ablations: configs/cola_joint.py with what a row of ABLATIONS says, under the name of that row.

python -m colajax.train --config configs/ablations.py:block-64-vae --workdir VAE --config.records=RECORDS
python -m colajax.train --config configs/ablations.py:block-64 --workdir RUN --config.records=RECORDS \\
    --config.init_from=VAE
  The paper's setup. NAME-vae is stage 1 of an ablation that changes it; the others begin with a run of cola_vae.py, and
  from-scratch with none.

configs/ablations.py:block-8-vae-quickstart, configs/ablations.py:block-8-quickstart
  The same at CPU size, on the quickstart's records.
"""

import cola_joint
import cola_vae
from ml_collections import ConfigDict


def _blocks(size: int) -> dict:
    return {"vae.block_size": size, "dit.block_size": size}


def _latents(channels: int, loc: float) -> dict:
    sizes = dict.fromkeys(("vae.latent_dim", "dit.txt_in_channels", "dit.txt_out_channels"), channels)
    return sizes | {"objective.time_loc": loc}


ABLATIONS = {
    "joint": {},  # what the others are compared with
    "fixed-vae": {"objective.train_vae": False},
    "slow-vae": {"optimizer.lr_ratio": (("vae/.*", 0.01), (".*", 1.0))},
    "from-scratch": {"objective.lambda_ref": 0.0},
    "interval": {"objective.interval": 5000, "objective.interval_joint": 2000},
    **{f"logsnr-{ratio}": {"objective.fixed_log_snr": ratio} for ratio in (1.0, 1.5, 2.0)},
    "no-mask-loss": {"objective.mask_every": 0},
    "uniform-time": {"objective.time_distribution": "uniform"},
    **{f"loc-{loc}": {"objective.time_loc": float(loc)} for loc in range(4)},
    **{f"block-{size}": _blocks(size) for size in (1, 8, 16, 32, 64, 128)},
    "causal": {"vae.block_size": 1},  # a strictly causal VAE under the prior's blocks
    **{f"latent-{channels}": _latents(channels, loc) for channels, loc in ((16, 1.0), (64, 1.7), (128, 2.3))},
    "patch-2": {"vae.patch_size": 2},
}
# What is another number in the quickstart's few steps and short rows (None: not there).
QUICKSTART = {"interval": {"objective.interval": 100, "objective.interval_joint": 40}, "block-128": None}
STAGE_1 = ("vae.", "objective.mask_every", "objective.fixed_log_snr")  # keys that stage 1 has to have alike


def _changes(name: str, quickstart: bool) -> dict | None:
    return QUICKSTART.get(name, ABLATIONS[name]) if quickstart else ABLATIONS[name]


def _of_stage_1(changes: dict) -> dict:
    return {key: value for key, value in changes.items() if key.startswith(STAGE_1)}


def _variants() -> dict[str, tuple[str, bool, bool]]:
    """{variant: (name of the ablation, whether it is stage 1, whether it is of CPU size)}"""
    found = {}
    for name in ABLATIONS:
        for quickstart in (False, True):
            changes, size = _changes(name, quickstart), "-quickstart" if quickstart else ""
            if changes is not None:
                found[f"{name}{size}"] = name, False, quickstart
                if _of_stage_1(changes):
                    found[f"{name}-vae{size}"] = name, True, quickstart
    return found


VARIANTS = _variants()


def get_config(variant: str) -> ConfigDict:
    name, stage_1, quickstart = VARIANTS[variant]
    changes = _changes(name, quickstart)
    config = (cola_vae if stage_1 else cola_joint).get_config("quickstart" if quickstart else "")
    config.update_from_flattened_dict(_of_stage_1(changes) if stage_1 else changes)
    return config
