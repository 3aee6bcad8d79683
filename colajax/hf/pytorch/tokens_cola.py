"""From logits to tokens, and the settings of a generation. Letters: B samples, T tokens, V vocabulary."""

import torch

# What the released code and others call a setting.
OTHER_NAMES = {"guidance_scale": "guidance", "timestep_num": "steps", "diffusion_steps": "steps"}


def penalise(logits, seen, penalty):
    """Makes tokens already seen less likely. logits: (B, T, V); seen: (B, V)."""
    lowered = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(seen[:, None], lowered, logits)


def restrict(scores, top_k, top_p):
    """-inf outside the top_k best and, of those, outside the smallest set of probability top_p. scores: (..., V)."""
    if top_k:
        last = scores.topk(min(top_k, scores.shape[-1]), dim=-1).values[..., -1:]
        scores = scores.masked_fill(scores < last, float("-inf"))
    if top_p < 1:
        ordered = scores.sort(dim=-1, descending=True).values
        probabilities = ordered.softmax(dim=-1)
        kept = (probabilities.cumsum(dim=-1) - probabilities < top_p) & (ordered > float("-inf"))
        threshold = ordered.masked_fill(~kept, float("inf")).amin(dim=-1, keepdim=True)
        scores = scores.masked_fill(scores < threshold, float("-inf"))
    return scores


def choose(logits, seen, generators, temperature, top_k, top_p, repetition_penalty):
    """Tokens (B, T) of logits (B, T, V): penalty, temperature, top-k, top-p; temperature 0 takes the best token."""
    scores = penalise(logits, seen, repetition_penalty)
    if temperature == 0:
        return scores.argmax(dim=-1)
    probabilities = restrict(scores / temperature, top_k, top_p).softmax(dim=-1).cpu()
    drawn = [torch.multinomial(p, 1, generator=g)[:, 0] for p, g in zip(probabilities, generators, strict=True)]
    return torch.stack(drawn).to(logits.device)


def with_text(logits, config):
    """-inf for ids that the tokenizer has no piece for: the vocabulary may be larger (config.token_count)."""
    count = getattr(config, "token_count", None) or logits.shape[-1]
    return logits.masked_fill(torch.arange(logits.shape[-1], device=logits.device) >= count, float("-inf"))


def answer(new, budget, end):
    """The new tokens that count, and whether there will be no more."""
    new = new[:budget]
    return (new[: new.index(end)], True) if end in new else (new, len(new) == budget)


def as_lists(input_ids, attention_mask):
    """Token ids as a list of lists, without what the attention mask leaves out."""
    if not torch.is_tensor(input_ids):
        return [list(prompt) for prompt in input_ids]
    kept = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    return [row[mask.bool()].tolist() for row, mask in zip(input_ids, kept, strict=True)]


def settings_of(defaults, generation_config, given):
    """Every setting of `defaults`: given, or as in the generation_config, under these names or OTHER_NAMES. ValueError
    on an unknown name and on two names with two values."""
    unknown = sorted(set(given) - {*defaults, *OTHER_NAMES})
    if unknown:
        raise ValueError(f"generate() got {', '.join(unknown)}: expected some of {', '.join(defaults)}")
    kept = {key: getattr(generation_config, key, None) for key in (*defaults, *OTHER_NAMES)}
    kept = {key: value for key, value in kept.items() if value is not None}
    settings = {**defaults, **_own_names(kept), **_own_names(given)}
    for key in ("max_new_tokens", "steps"):
        if settings[key] is not None and settings[key] < 1:
            raise ValueError(f"{key} is {settings[key]!r}: expected at least 1")
    return settings


def _own_names(settings):
    """The same without OTHER_NAMES."""
    own = {}
    for name, value in settings.items():
        key = OTHER_NAMES.get(name, name)
        if own.setdefault(key, value) != value:
            others = [other for other, meant in OTHER_NAMES.items() if meant == key]
            raise ValueError(f"{key} and {' or '.join(others)} differ: expected one of the names")
    return own
