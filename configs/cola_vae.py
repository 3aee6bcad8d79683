"""Stage 1: the text VAE.

python -m colajax.train --config configs/cola_vae.py --workdir DIR --config.records=RECORDS
  The paper's setup: ~500 M parameters, OLMo 2 tokenizer, rows of 512, global batch 1408.

python -m colajax.train --config configs/cola_vae.py:quickstart --workdir DIR --config.records=RECORDS
  Two CPU cores, well under a minute: what launch/quickstart.sh runs.

What was tried for the values that the paper leaves open is in configs/README.md.
"""

import dataclasses

from ml_collections import ConfigDict, config_dict

from colajax.models.config import VAEConfig

VARIANTS = ("", "quickstart")


def get_config(variant: str = "") -> ConfigDict:
    config = ConfigDict()
    config.stage = "vae"
    config.seed = 66
    config.data_seed = 6198
    # A folder made by tools/prepare_data.py, or shares of several from a step on: "((0, {DIR: .7, DIR: .3}), ...)".
    config.records = ""
    config.records_cache = ""  # a folder on each machine's disk to which they are copied first, whole and once

    config.batch_size = 1408  # rows, global
    config.sequence_length = 512  # tokens
    config.isolate_documents = False  # True: a document sees nothing of the others in its row (configs/README.md)
    config.accumulation_steps = 1  # equal parts that a batch is gone through in
    config.total_steps = 1_000_000
    config.compute_dtype = "bfloat16"  # parameters are float32
    config.gradient_reduction = "float32"  # of kernels, over devices; bfloat16 sends half (configs/README.md)
    config.remat = "dots"  # none, dots (save matrix products), full
    # Devices along each axis of the mesh, -1: all that the others leave (colajax/parallel/mesh.py).
    config.mesh = ConfigDict({"data": -1, "fsdp": 16, "tensor": 1})

    config.log_every = 50  # steps, like the next three
    config.eval_every = 1000
    config.checkpoint_every = 1000
    config.keep_every = 50_000  # beside the latest two
    config.eval_rows = 1408
    # EFLOPs (6 N tokens) at which a checkpoint is kept for good and evaluated; total_steps 0: up to the last of them.
    config.budgets = ()
    # An update is skipped where its loss or gradient is no number, or so many standard deviations above the mean of the
    # last 128 (0: no bound); after so many skipped in a row the run goes back to a checkpoint, past their batches.
    config.spike_sigmas = 0.0
    config.skips_in_a_row = 10
    config.damaged_rows = "stop"  # or "skip": the next row that is whole in place of one that is damaged
    config.max_epochs = 4.0  # of the same rows, of which more are said at the start; 0: any number
    # What is said, or done, of an evaluation: (figure, below/above/stalled, bound, warn/keep/stop).
    config.alerts = ()
    config.hang_seconds = 1800  # without an update, an evaluation or a save, after which the run ends; 0: never

    # Every option of the model; the defaults are the released one (colajax/models/config.py).
    config.vae = ConfigDict(dataclasses.asdict(VAEConfig()))
    config.vae.clip_qkv = config_dict.placeholder(float)

    config.objective = ConfigDict({
        "beta": 2e-3,  # of the KL, summed over channels, mean over latents
        "lambda_mask": 1.0,
        "mask_every": 4,  # every 4th row has a masked view; 0: without L_mask
        "mask_rate": 0.15,
        "fixed_log_snr": config_dict.placeholder(float),  # a number: the fixed-variance VAE of the paper's ablation
    })  # fmt: skip

    config.optimizer = ConfigDict({
        "peak": 1.5e-4, "init_value": 1e-6, "end_value": 1e-5, "warmup_steps": 5000,
        "b1": 0.9, "b2": 0.95, "eps": 1e-8, "clip": 1.0,  # clip: of each parameter group
        "decay_steps": config_dict.placeholder(int),  # where the cosine ends, end_value after it; None: total_steps
        "rewarm_from": 0,  # the step at which the moments were fresh, where that is not 0: the rate warms up again
        "weight_decay": ((".*/(kernel|embedding)", 0.01), (".*", 0.0)),  # first match of the whole path
        "lr_ratio": ((".*", 1.0),),
    })  # fmt: skip

    if variant == "quickstart":
        config.batch_size, config.sequence_length = 32, 64
        config.total_steps = 300
        config.compute_dtype, config.remat = "float32", "none"
        config.mesh.fsdp = 1
        config.log_every, config.eval_every, config.checkpoint_every, config.eval_rows = 25, 150, 100, 256
        config.vae.update({
            "vocab_size": 1024, "dim": 64, "ffn_dim": 256, "num_heads": 4, "encoder_num_blocks": 1,
            "decoder_num_blocks": 1, "block_size": 8,
        })  # fmt: skip
        config.optimizer.update({"peak": 3e-3, "end_value": 3e-4, "warmup_steps": 30})
    return config
