"""README.md of an export, filled from the run."""

import json
import pathlib
from typing import NamedTuple

from etils import epath

from colajax.data.mixture import schedule_of
from colajax.files import read_json
from colajax.train.metrics import read_lines

_PAPER = "[arXiv:2605.06548](https://arxiv.org/abs/2605.06548)"
_USE = '''## Use

Needs torch and transformers, and nothing else.

```python
from transformers import AutoModel, AutoTokenizer

model = AutoModel.from_pretrained("{name}", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)
prompts = ["Once upon a time", "The weather today"]
inputs = tokenizer(prompts, add_special_tokens=False)["input_ids"]
for given, answer in zip(inputs, model.generate(inputs, max_new_tokens=32)):
    print(tokenizer.decode(given + answer))
```

`generate(input_ids, attention_mask=None, *, noise=None, **settings)` returns the new token ids of each prompt: exactly
max_new_tokens, or fewer where the end token comes first. Settings: max_new_tokens, steps (Euler steps a block; also
timestep_num or diffusion_steps), guidance (1 is none; also guidance_scale), temperature (0 takes the best token),
top_k, top_p, repetition_penalty, seed; their defaults are in generation_config.json. `noise` (blocks, batch,
block_size, latent_dim) replaces what is drawn. `model.vae.encode` and `model.vae.decode` are the text VAE, `model.dit`
is the prior. `AutoModel` loads `cola_vae/` and `cola_dit/` alone too.
'''
_USE_VAE = '''## Use

Needs torch and transformers, and nothing else.

```python
from transformers import AutoModel, AutoTokenizer

vae = AutoModel.from_pretrained("{name}/cola_vae", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)
```

`vae.encode(input_ids)` gives the mean and log-variance of the latents, `vae.decode(z)` token logits.
'''
_USE_AR = '''## Use

Needs torch and transformers, and nothing else.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
for prompt in ("Once upon a time", "The weather today"):
    inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt", return_token_type_ids=False)
    print(tokenizer.decode(model.generate(**inputs, max_new_tokens=32)[0], skip_special_tokens=True))
```

A LlamaForCausalLM: what serves LLaMA serves it. A document begins behind an end of text.
'''
_USE_LLADA = '''## Use

Needs torch and transformers, and nothing else.

```python
from transformers import AutoModelForMaskedLM, AutoTokenizer

model = AutoModelForMaskedLM.from_pretrained("{name}", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)
prompts = ["Once upon a time", "The weather today"]
inputs = tokenizer(prompts, add_special_tokens=False)["input_ids"]
for given, answer in zip(inputs, model.generate(inputs, max_new_tokens=32)):
    print(tokenizer.decode(given + answer))
```

`generate(input_ids, attention_mask=None, **settings)` returns the new token ids of each prompt: exactly max_new_tokens,
or fewer where the end token comes first. Settings: max_new_tokens, steps (in all; by default as many as tokens),
block_length (tokens that are uncovered before those behind them; 0 is the whole answer), guidance (1 is none),
temperature (0 takes the best token), top_k, top_p, repetition_penalty, seed; their defaults are in
generation_config.json. `model(input_ids).logits` are of every token from all others; id vocab_size is a masked one.
'''


class _Card(NamedTuple):
    """What a card says of a run of a stage."""

    title: str
    first: str  # what it is
    tags: list[str]
    use: str
    pipeline: str = "text-generation"


_COLA = "A continuous latent diffusion language model"
_CARDS = {
    "vae": _Card("Cola DLM: text VAE (stage 1)", _COLA, ["cola-dlm", "diffusion"], _USE_VAE, "feature-extraction"),
    "joint": _Card("Cola DLM: text VAE and block-causal DiT prior", _COLA, ["cola-dlm", "diffusion"], _USE),
    "ar": _Card("AR: LLaMA", "The autoregressive baseline of Cola DLM", ["llama"], _USE_AR),
    "llada": _Card(
        "LLaDA: bidirectional LLaMA", "The masked diffusion baseline of Cola DLM", ["llada", "diffusion"], _USE_LLADA
    ),
}


class Stated(NamedTuple):
    """What the user says of a model, as the hub has it in its metadata: a license and ids there; None: not said."""

    license: str | None = None
    language: list[str] | None = None
    datasets: list[str] | None = None
    base_model: str | None = None


NOTHING = Stated()


def model_card(workdir, config: dict, step: int, dtype: str, stated: Stated) -> str:
    """The card of a run's export. workdir: its metrics are read up to `step`, if it has any."""
    card = _CARDS[config["stage"]]
    metadata = {
        "library_name": "transformers",
        "pipeline_tag": card.pipeline,
        "tags": [*card.tags, "arxiv:2605.06548"],
        **{key: value for key, value in stated._asdict().items() if value},
    }
    # JSON is YAML.
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in metadata.items()), "---", ""]
    lines += [f"# {card.title}", "", f"{card.first} ({_PAPER}), exported by colajax.", ""]
    lines += [card.use.format(name="PATH_OF_THIS_FOLDER"), "## Training", ""]
    tokens = step * config["batch_size"] * config["sequence_length"]
    train, evaluation = _metrics(workdir, step)
    facts = {
        "stage": config["stage"],
        "steps": f"{step:,} of {config['total_steps']:,}",
        "tokens": f"{tokens:,} (batch {config['batch_size']} x {config['sequence_length']})",
        "EFLOPs": f"{train['eflops']:.4g}" if "eflops" in train else "not recorded",
        "data": ", ".join(_sources(config)) or "not recorded",
        "weights here": dtype,
    }
    lines += ["| | |", "|-|-|", *(f"| {key} | {value} |" for key, value in facts.items()), ""]
    for title, figures in (("Last training step logged", train), ("Last evaluation", evaluation)):
        shown = {k: v for k, v in figures.items() if isinstance(v, float)}
        if shown:
            lines += [f"### {title}: step {figures['step']:,}", "", "| | |", "|-|-|"]
            lines += [*(f"| {key} | {value:.5g} |" for key, value in shown.items()), ""]
    kept = {key: value for key, value in config.items() if key not in ("records", "init_from", "facts")}
    lines += ["## Configuration", "", "```json", json.dumps(kept, indent=1), "```", ""]
    return "\n".join(lines)


def _metrics(workdir, step: int) -> tuple[dict, dict]:
    """The last lines of training and of evaluation in the run's metrics, up to `step`."""
    found: dict[str, dict] = {"train": {}, "eval": {}}
    for entry in read_lines(epath.Path(workdir) / "metrics.jsonl"):
        if entry["step"] <= step:
            found[entry.get("kind")] = entry
    return found["train"], found["eval"]


def _sources(config: dict) -> list[str]:
    """Names of the files that the records were made from, where the records can still be read."""
    folders = [folder for entry in schedule_of(config["records"] or ".") for folder in entry.weights]
    paths = [epath.Path(folder) / "metadata.json" for folder in dict.fromkeys(folders)]
    sources = [source for path in paths if path.exists() for source in read_json(path, "source")["source"]]
    return [pathlib.PurePath(source["file"]).name for source in sources]
