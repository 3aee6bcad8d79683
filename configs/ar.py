"""The autoregressive baseline: LLaMA on the data, batches and schedule of the text VAE and its prior.

python -m colajax.train --config configs/ar.py --workdir DIR --config.records=RECORDS
  The paper's setup: 1.81 B parameters in 27 layers and 0.41 B in the embeddings.

python -m colajax.train --config configs/ar.py:quickstart --workdir DIR --config.records=RECORDS
  Two CPU cores, a few minutes: as many parameters, and as many tokens, as stages 1 and 2 of Cola's quickstart together.
"""

import dataclasses

import cola_vae
from ml_collections import ConfigDict

from colajax.models.config import LlamaConfig

VARIANTS = cola_vae.VARIANTS


def get_config(variant: str = "") -> ConfigDict:
    config = cola_vae.get_config(variant)
    config.stage = "ar"
    del config["vae"], config["objective"]
    config.compute_params = 1_800_000_000  # N of the EFLOP axis (the paper's figure); 0: the layers' own count

    # Every option of the model; the defaults are the paper's (colajax/models/config.py).
    config.llama = ConfigDict(dataclasses.asdict(LlamaConfig()))

    if variant == "quickstart":
        config.compute_params = 0
        config.total_steps = 1700
        config.eval_every, config.checkpoint_every = 850, 200
        config.llama.update({
            "vocab_size": 1024, "hidden_size": 128, "intermediate_size": 640, "num_hidden_layers": 4,
            "num_attention_heads": 4,
        })  # fmt: skip
        config.optimizer.update({"peak": 3e-3, "end_value": 1e-4, "warmup_steps": 100})
    return config
