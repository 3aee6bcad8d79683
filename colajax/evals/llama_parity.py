"""What a baseline's run and its export give on the same inputs: logits, and greedy texts."""

import pathlib

import jax
import numpy as np

from colajax.errors import UserError
from colajax.sampling.base import BaseSampler
from colajax.sampling.settings import SamplingSettings

MODELS = {"ar": "AutoModelForCausalLM", "llada": "AutoModelForMaskedLM"}  # of transformers, by stage
_LENGTHS = (12, 7)  # of the rows; the rest of a shorter one is padding
_NEW_TOKENS = 8


def outputs(stage: str, sampler: BaseSampler, hf: pathlib.Path, rng):
    """((our logits, theirs), (our texts, theirs)). Logits: (tokens, V), of what is not padding. Texts: of an empty
    prompt, a short one and a longer one; with guidance for LLaDA."""
    model, config = _load(hf, MODELS[stage]), sampler.config
    lengths = np.array(_LENGTHS)
    used = np.arange(lengths.max()) < lengths[:, None]
    tokens = rng.integers(0, config.vocab_size, used.shape)
    if stage == "llada":
        tokens[:, ::3] = config.mask_id
    bind = sampler.models({"llama": config})["llama"].bind
    run = jax.jit(lambda params: bind(params)(tokens, lengths=lengths)[0])
    logits = np.asarray(run(sampler.params["llama"]))[used], _logits(model, tokens, used)
    prompts = [rng.integers(0, sampler.token_count, length).tolist() for length in (0, 3, 9)]
    greedy = SamplingSettings(
        max_new_tokens=_NEW_TOKENS, temperature=0.0, steps=4, block_length=_NEW_TOKENS // 2, guidance=1.5
    )
    return logits, (sampler.generate(prompts, greedy), _texts(stage, model, sampler, prompts, greedy))


def _load(hf: pathlib.Path, auto: str):
    """The model as a user loads it, with all its tensors and no others, in float32."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model, loading = getattr(transformers, auto).from_pretrained(
        str(hf), trust_remote_code=True, local_files_only=True, dtype=torch.float32, output_loading_info=True
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loading[problem]:
            raise UserError(f"{hf}: {problem.replace('_', ' ')}: {sorted(loading[problem])}")
    return model.eval()


def _logits(model, tokens, used) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(tokens), attention_mask=torch.from_numpy(used)).logits.numpy()[used]


def _texts(stage: str, model, sampler: BaseSampler, prompts, greedy: SamplingSettings) -> list[list[int]]:
    import torch

    if stage == "llada":
        names = ("max_new_tokens", "temperature", "steps", "block_length", "guidance")
        return model.generate(prompts, **{name: getattr(greedy, name) for name in names})
    texts = []
    for prompt in sampler.begun(prompts):
        row = torch.tensor([prompt])
        new = model.generate(
            row, attention_mask=torch.ones_like(row), max_new_tokens=greedy.max_new_tokens, do_sample=False,
            pad_token_id=sampler.pad_id, eos_token_id=sampler.eos_id, temperature=None, top_k=None, top_p=None,
        )[0, len(prompt) :].tolist()  # fmt: skip
        texts.append(sampler.answer(new, greedy.max_new_tokens)[0])
    return texts
