"""Whether an export computes what the run computes: the same inputs through JAX and the exported PyTorch classes.

Needs torch and transformers (the extra "torch").
"""

import hashlib
import importlib.metadata
import json
import pathlib
from itertools import zip_longest
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from etils import epath

from colajax.data.tokenizer import pad_id_of
from colajax.errors import UserError
from colajax.evals import llama_parity
from colajax.files import read_json, write_whole
from colajax.hf import layout, shards
from colajax.hf.export import MANIFEST, kinds_of
from colajax.hf.local_files import fetched
from colajax.models.config import from_mapping
from colajax.models.layers import Functional
from colajax.sampling.cola import Sampler
from colajax.sampling.load import SAMPLERS, run_tokenizer
from colajax.sampling.settings import SamplingSettings
from colajax.train.checkpoint import reading
from colajax.train.kept import run_config
from colajax.train.stored import open_arrays

CERTIFICATE = "certificate.json"
TOLERANCE = 1e-4
# A trained flow magnifies rounding, after some prompts more than after others: what a generation may differ by is
# measured in what one rounding of its noise makes of it. A velocity differs by some ten, and every step adds its own.
ROUNDINGS = 100
MAGNIFIED = 1e-2  # and no more than this, for then a generation would show nothing
_ROWS, _BLOCKS = 2, 3  # of the inputs
_PACKAGES = ("colajax", "jax", "flax", "torch", "transformers", "numpy")


class Difference(NamedTuple):
    """A row of the table: the largest difference (see `_difference`), or a count of what differs; rounding: how much of
    that rounding alone explains."""

    what: str
    largest: float
    rounding: float = 0.0


def verify(workdir, hf: epath.PathLike, *, tolerance: float = TOLERANCE) -> list[Difference]:
    """Compares, in float32, and writes certificate.json into `hf`. Raises UserError on a difference above `tolerance`
    that rounding does not explain, the certificate saying so. Weights are compared as the export holds them: rounded,
    where it is bfloat16. An export in a bucket is fetched whole: torch loads local files."""
    hf = epath.Path(hf)
    path = hf / MANIFEST
    if not path.exists():
        raise UserError(f"{hf}: no {MANIFEST} there; expected a folder that tools/export_hf.py wrote")
    manifest = _manifest(path)
    with fetched(hf) as local:
        table = [Difference("tensors that differ from the manifest", _wrong_digests(local, manifest))]
        if not table[0].largest:
            table += _compare(workdir, local, manifest)
    failed = [row.what for row in table if not row.largest <= max(tolerance, row.rounding)]
    certificate = {
        "passed": not failed,
        "tolerance": tolerance,
        "step": manifest["step"],
        "differences": {row.what: row.largest for row in table},
        "rounding": {row.what: row.rounding for row in table if row.rounding},
        "manifest_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "versions": {package: _version(package) for package in _PACKAGES},
    }
    write_whole(hf / CERTIFICATE, json.dumps(certificate, indent=2) + "\n")
    width = max(len(row.what) for row in table)
    for row in table:
        explained = f"  (rounding explains {row.rounding:.3g})" if row.largest > tolerance and row.rounding else ""
        print(f"{row.what:<{width}}  {row.largest:.3g}{explained}", flush=True)
    if failed:
        raise UserError(f"{hf}: differs from {workdir} by more than {tolerance:g} in {', '.join(failed)}")
    return table


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None  # run from a folder on PYTHONPATH


def _manifest(path) -> dict:
    found = read_json(path, "sha256", "step", "dtype")
    digests, step, dtype = found["sha256"], found["step"], found["dtype"]
    texts = isinstance(digests, dict) and all(isinstance(digest, str) for digest in digests.values())
    if not (texts and type(step) is int and isinstance(dtype, str) and dtype in shards.DTYPES):
        raise UserError(f"{path}: damaged; expected sha256 of every tensor, a step and a dtype; export again")
    return found


def _wrong_digests(hf: pathlib.Path, manifest: dict) -> int:
    """How many tensors of the files are not what the manifest says, missing and unknown ones included."""
    found = {}
    for file in sorted([*hf.glob("*.safetensors"), *hf.glob("cola_*/*.safetensors")]):
        with safetensors.safe_open(str(file), framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (a safetensors handle is no mapping)
                data = tensors.get_tensor(name).reshape(-1).view(np.uint8)
                place = (file.parent.relative_to(hf) / name).as_posix()
                found[place] = hashlib.sha256(data).hexdigest()
    return len({*found.items()} ^ {*manifest["sha256"].items()})


def _compare(workdir, hf: pathlib.Path, manifest: dict) -> list[Difference]:
    config = run_config(workdir)
    step, params = open_arrays(workdir, manifest["step"])
    dtype = shards.DTYPES[manifest["dtype"]]
    with reading(workdir, step):
        params = jax.tree.map(lambda x: np.asarray(x).astype(dtype).astype(np.float32), params)
    configs = {
        group: from_mapping(kind.config_class, config[group], f"{workdir}: {group}")
        for group, kind in kinds_of(workdir, config).items()
    }
    rng, stage = np.random.default_rng(0), config["stage"]
    if stage == "vae":
        return _compare_vae(configs["vae"], params["vae"], _load(hf / layout.VAE.folder), rng)
    tokenizer = run_tokenizer(workdir)
    sampler = SAMPLERS[stage].of(
        configs, params, pad_id=pad_id_of(tokenizer, next(iter(configs.values())).vocab_size), eos_id=tokenizer.eos_id,
        token_count=tokenizer.vocab_size,
    )  # fmt: skip
    if stage in llama_parity.MODELS:
        logits, texts = llama_parity.outputs(stage, sampler, hf, rng)
        differ = sum(a != b for ours, theirs in zip(*texts, strict=True) for a, b in zip_longest(ours, theirs))
        table = [Difference("logits", _difference(*logits, least=1e-30))]
        return [*table, Difference("generation: tokens that differ", differ)]
    model = _load(hf)
    table = _compare_vae(configs["vae"], params["vae"], model.vae, rng)
    table += _compare_dit(configs["dit"], params["dit"], model.dit, rng)
    return table + _compare_generation(sampler, model, rng)


def _load(folder: pathlib.Path):
    """The model as a user loads it, in float32."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return transformers.AutoModel.from_pretrained(
        str(folder), trust_remote_code=True, local_files_only=True, dtype=torch.float32
    ).eval()


def _difference(ours, theirs, least: float = 1.0) -> float:
    """The largest absolute difference, as a share of the largest value where that is above `least`: float32 rounds in
    proportion, and a trained model's logits are tens."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    return float(np.abs(ours - theirs).max() / max(least, np.abs(ours).max()))


def _compare_vae(config, params: dict, model, rng) -> list[Difference]:
    import torch

    tokens = rng.integers(0, config.vocab_size, (_ROWS, _BLOCKS * config.block_size * config.patch_size))
    tokens[:, 1] = config.mask_id
    z = rng.standard_normal((_ROWS, _BLOCKS * config.block_size, config.latent_dim)).astype(np.float32)
    vae = Functional(layout.VAE.make, config)

    @jax.jit
    def outputs(params, tokens, z):
        module = vae.bind(params)
        return *module.encoder(tokens), module.decoder(z)[0]

    mean, logvar, logits = outputs(params, tokens, z)
    with torch.no_grad():
        their_mean, their_logvar = model.encode(torch.from_numpy(tokens))
        their_logits = model.decode(torch.from_numpy(z))
    table = [Difference("encode: mean", _difference(mean, their_mean))]
    if logvar is not None:
        table.append(Difference("encode: log-variance", _difference(logvar, their_logvar)))
    return [*table, Difference("decode: logits", _difference(logits, their_logits))]


def _compare_dit(config, params: dict, model, rng) -> list[Difference]:
    import torch

    shape = (_ROWS, _BLOCKS * config.block_size, config.txt_in_channels)
    z0, zt = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    times = rng.uniform(0.1, 1, _ROWS).astype(np.float32)
    is_noisy = np.ones(shape[:2], bool)
    is_noisy[0, :2] = False  # as where a prompt ends inside a block
    dit = Functional(layout.DIT.make, config)

    @jax.jit
    def velocity(params, z, times, is_noisy):
        return dit.bind(params)(z, times, is_noisy, jnp.arange(z.shape[2]))[0]

    both = np.stack([np.zeros_like(is_noisy), is_noisy], 1)
    ours = np.asarray(velocity(params, np.stack([z0, zt], 1), times, both))
    with torch.no_grad():
        clean, noisy = model.two_copies(*map(torch.from_numpy, (z0, zt, np.where(is_noisy, 1000 * times[:, None], 0))))
    return [
        Difference("velocity: clean", _difference(ours[:, 0], clean)),
        Difference("velocity: noisy", _difference(ours[:, 1], noisy)),
    ]


def _compare_generation(sampler: Sampler, model, rng) -> list[Difference]:
    """Two blocks, greedy, from the same noise; an empty prompt, one inside a block, one of a block and a part."""
    config, size, width = sampler.vae_config, sampler.block_size, sampler.block_tokens
    lengths = (0, max(1, width // 2), width + max(1, width // 4))
    prompts = [rng.integers(0, config.vocab_size, length).tolist() for length in lengths]
    noise = rng.standard_normal((2, len(prompts), size, config.latent_dim)).astype(np.float32)
    settings = {"steps": 4, "guidance": 1.5, "temperature": 0.0, "repetition_penalty": 1.1}
    nudged = noise * (1 + np.finfo(np.float32).eps * rng.choice([-1, 1], noise.shape)).astype(np.float32)
    ours, moved = (list(sampler.blocks(prompts, SamplingSettings(**settings), 2, noise=n)) for n in (noise, nudged))
    all_settings = model.settings(**settings)
    del all_settings["max_new_tokens"]
    theirs = list(model.generate_blocks(prompts, 2, noise=noise, **all_settings))
    logits = max(_difference(a, b) for (a, _), (b, _) in zip(ours, theirs, strict=True))
    own = max(_difference(a, b) for (a, _), (b, _) in zip(ours, moved, strict=True))
    tokens = sum(int((np.asarray(a) != b.numpy()).sum()) for (_, a), (_, b) in zip(ours, theirs, strict=True))
    rounding = min(MAGNIFIED, ROUNDINGS * own)
    return [Difference("generation: logits", logits, rounding), Difference("generation: tokens that differ", tokens)]
