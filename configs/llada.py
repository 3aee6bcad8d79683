"""The masked diffusion baseline, LLaDA: the network of configs/ar.py without its causal mask.

python -m colajax.train --config configs/llada.py --workdir DIR --config.records=RECORDS
  The paper's setup.

python -m colajax.train --config configs/llada.py:quickstart --workdir DIR --config.records=RECORDS
  Two CPU cores, a few minutes: the tokens and the parameters of configs/ar.py:quickstart.
"""

import ar
from ml_collections import ConfigDict

VARIANTS = ar.VARIANTS


def get_config(variant: str = "") -> ConfigDict:
    config = ar.get_config(variant)
    config.stage = "llada"
    config.objective = ConfigDict({
        "least_rate": 1e-3,  # of masking: (1 - least_rate) t + least_rate
        "cut_probability": 0.01,  # of a batch, to be cut to a random length
    })  # fmt: skip
    return config
