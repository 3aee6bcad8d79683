"""Stage 2: the block-causal DiT prior, jointly with the VAE of a stage 1 run.

python -m colajax.train --config configs/cola_joint.py --workdir DIR --config.records=RECORDS --config.init_from=STAGE1
  The paper's setup: a prior of ~1.8 B parameters on the ~500 M VAE.

python -m colajax.train --config configs/cola_joint.py:quickstart --workdir DIR --config.records=RECORDS \\
    --config.init_from=STAGE1
  Two CPU cores, a few minutes: what launch/quickstart.sh runs.

The paper's variants of it are configs/ablations.py.
"""

import dataclasses

import cola_vae
from ml_collections import ConfigDict, config_dict

from colajax.models.config import DiTConfig

VARIANTS = cola_vae.VARIANTS


def get_config(variant: str = "") -> ConfigDict:
    config = cola_vae.get_config(variant)
    config.stage = "joint"
    config.init_from = ""  # workdir of a stage 1 run; "": all from scratch
    config.init_step = config_dict.placeholder(int)  # of its checkpoint; None: the latest
    config.compute_params = 1_800_000_000  # N of the EFLOP axis (the paper's figure); 0: the prior's own count

    config.alerts = (
        ("mean_variance", "below", 0.5, "warn"), ("gaussian_skill", "above", 0.5, "warn"),  # collapse
        ("kl_reference", "above", 1.0, "warn"), ("dead_channels", "above", 0.25, "warn"),
        ("skill", "stalled", 20, "warn"),  # evaluations
    )  # fmt: skip

    # Every option of the model; the defaults are the released one (colajax/models/config.py).
    config.dit = ConfigDict(dataclasses.asdict(DiTConfig()))

    o = config.objective
    o.lambda_vae = 1.0
    o.lambda_fm = 1.0
    o.lambda_ref = 1.0  # of the KL to the stage 1 encoder, summed over channels; without it the latents collapse
    o.time_distribution = "logit_normal"  # or uniform
    o.time_loc = 1.0
    o.time_scale = 1.0
    o.prompt_probability = 0.05  # of a block whose head is given clean
    o.train_vae = True
    o.interval = 0  # of each so many steps the first interval_joint train the VAE; 0: all do
    o.interval_joint = 0

    if variant == "quickstart":
        config.compute_params = 0
        config.total_steps = 1400
        config.eval_every, config.checkpoint_every = 700, 200
        config.dit.update({
            "txt_dim": 128, "emb_dim": 128, "heads": 4, "head_dim": 32, "num_layers": 4, "rope_dim": 32,
            "block_size": 8,
        })  # fmt: skip
        config.optimizer.update({"peak": 3e-3, "end_value": 1e-4, "warmup_steps": 100})
    return config
