"""The latents of held-out text along their two widest directions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from colajax.data.records import Records, check_tokenizer
from colajax.errors import UserError
from colajax.models.config import VAEConfig, from_mapping
from colajax.models.layers import Functional
from colajax.models.text_vae import TextVAE
from colajax.parallel.mesh import make_mesh
from colajax.sampling.base import EVERY_DEVICE, parameters_like
from colajax.sampling.load import all_finite, run_tokenizer
from colajax.stages.base import documents_of
from colajax.train.checkpoint import read_params

TEXT_VAES = ("vae", "joint")  # the stages that have one
ROWS = 32


class Latents(NamedTuple):
    """Of posterior means (N, D): their places (N, 2) along the first two principal components, the share of the whole
    variance that each component has (D,), widest first, and the text of the first token of each (N,)."""

    step: int
    places: np.ndarray
    shares: np.ndarray
    tokens: list[str]


def latents_of(workdir, config: dict, records) -> Latents:
    """Encodes the first held-out rows with the run's latest checkpoint. Raises UserError on records that are not of its
    tokenizer, on a run without a checkpoint, and on parameters that are not finite."""
    tokenizer, held_out = run_tokenizer(workdir), Records.open(records, "validation")
    check_tokenizer(held_out.metadata, tokenizer)
    vae = from_mapping(VAEConfig, config["vae"], f"{workdir}: vae")
    model = Functional(TextVAE, vae, dtype=jnp.float32)
    step, params = read_params(workdir, like=parameters_like({"vae": model}, make_mesh(EVERY_DEVICE)))
    if not all_finite(params):
        raise UserError(f"{workdir}: step {step} holds NaN or infinity among its parameters; leave this run out")
    rows = held_out.read(range(min(ROWS, len(held_out))))
    rows = rows[:, : rows.shape[1] - rows.shape[1] % vae.patch_size]
    pad, end = (held_out.metadata["tokenizer"][name] for name in ("pad_id", "eos_id"))
    lengths = jnp.asarray((rows != pad).sum(1) // vae.patch_size)
    documents = documents_of(rows, end) if config["isolate_documents"] else None
    means = jax.jit(lambda params, rows: model.bind(params).encoder(rows, lengths, documents)[0])(params["vae"], rows)
    first = rows[:, :: vae.patch_size]
    places, shares = principal_components(np.asarray(means, np.float64)[first != pad])
    return Latents(step, places, shares, [tokenizer.decode([int(token)]).strip() for token in first[first != pad]])


def principal_components(latents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, D) -> places along the two widest directions (N, 2), and every direction's share of the variance (D,)."""
    centred = latents - latents.mean(0)
    variances, directions = np.linalg.eigh(centred.T @ centred / len(latents))
    widest = directions[:, ::-1][:, :2]
    # The sign of an eigenvector says nothing; this makes it the same everywhere.
    widest = widest * np.sign(widest[np.abs(widest).argmax(0), range(widest.shape[1])])
    return centred @ widest, np.clip(variances[::-1], 0, None) / max(variances.clip(0).sum(), 1e-30)
