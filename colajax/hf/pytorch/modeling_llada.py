"""LLaDA: a bidirectional LLaMA that predicts masked tokens, and its generation.

Letters: B samples, T tokens, H heads, K channels of a head, S tokens of a block, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

from .configuration_llada import LladaConfig
from .layers_cola import attention, rope_angles, rope_frequencies, rotate_half
from .tokens_cola import answer, as_lists, choose, settings_of, with_text

# generate() takes these; an export's generation_config.json may set others. steps None: as many as tokens.
DEFAULTS = {
    "max_new_tokens": 32, "steps": None, "block_length": 0, "guidance": 1.0, "temperature": 1.0, "top_k": 50,
    "top_p": 0.9, "repetition_penalty": 1.0, "seed": 0,
}  # fmt: skip


class RMSNorm(nn.Module):
    """In float32; the result in the input's dtype."""

    def __init__(self, dim, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x):
        h = x.float()
        return (h * (h.pow(2).mean(-1, keepdim=True) + self.eps).rsqrt() * self.weight.float()).to(x.dtype)


class LladaAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads = config.num_attention_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(config.hidden_size, config.hidden_size, bias=False) for _ in range(4)
        )

    def forward(self, x, angles, mask):
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = (rotate_half(a, angles, torch.float32) for a in (q, k))
        return self.o_proj(attention(q, k, v, mask))


class LladaMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class LladaLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = LladaAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = LladaMLP(config)

    def forward(self, x, angles, mask):
        x = x + self.self_attn(self.input_layernorm(x), angles, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class LladaStack(nn.Module):
    """Everything before the vocabulary."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size + 1, config.hidden_size)  # the last row is the mask
        self.layers = nn.ModuleList(LladaLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, tokens, mask):
        """tokens: (B, T); mask: (B, T) booleans, what is read. Positions are those in the row."""
        config = self.config
        frequencies = rope_frequencies(
            config.hidden_size // config.num_attention_heads, config.rope_theta, tokens.device
        )
        angles = rope_angles(torch.arange(tokens.shape[1], device=tokens.device)[None], frequencies)
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, angles, mask[:, None, None])
        return self.norm(x)


class LladaModel(PreTrainedModel):
    """The logits of every token from all others; id vocab_size is a masked one. Logits are float32."""

    config_class = LladaConfig
    main_input_name = "input_ids"

    def __init__(self, config):
        super().__init__(config)
        self.model = LladaStack(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
        self.generation_config = GenerationConfig()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As in transformers, with the settings of generation_config.json where there is one."""
        found = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        hub = {key: kwargs[key] for key in ("cache_dir", "force_download", "local_files_only", "revision", "token")
               if key in kwargs}  # fmt: skip
        try:
            settings = GenerationConfig.from_pretrained(pretrained_model_name_or_path, **hub)
        except OSError:  # saved without one
            return found
        (found[0] if isinstance(found, tuple) else found).generation_config = settings
        return found

    def forward(self, input_ids, attention_mask=None, **kwargs):
        """attention_mask: (B, T), 0 for what is not to be read."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return MaskedLMOutput(logits=self._logits(self.model(input_ids, mask.bool())))

    def _logits(self, hidden):
        return self.lm_head(hidden).float()

    def settings(self, **given):
        """Every setting of `generate`: given, or as in generation_config.json, under these names or OTHER_NAMES.
        ValueError on an unknown name and on two names with two values."""
        return settings_of(DEFAULTS, self.generation_config, given)

    @torch.no_grad()
    def generate(self, input_ids, attention_mask=None, **settings):
        """New tokens of each prompt, a list of lists: max_new_tokens, or fewer where the end token comes first.

        The answer stands behind the prompt as masks; a step predicts the masked tokens and keeps the most certain ones.
        input_ids: lists of token ids of any lengths, or a tensor (B, T) with its attention_mask. settings:
        max_new_tokens, steps (in all; None: as many as tokens), block_length (tokens that are uncovered before those
        behind them; 0: all), guidance (1: none; the paper's w is guidance - 1), temperature (0: the best token), top_k
        (0: off), top_p (1: off), repetition_penalty (1: off), seed; what is not given is as in generation_config.json.
        What a sample draws depends on the seed and on its place in the batch, and on nothing else in the batch.
        """
        settings, config = self.settings(**settings), self.config
        budget, prompts = settings["max_new_tokens"], as_lists(input_ids, attention_mask)
        begin = config.pad_token_id if config.eos_token_id is None else config.eos_token_id
        prompts = [list(prompt) or [begin] for prompt in prompts]
        if not prompts:
            return []
        device, rest = self.lm_head.weight.device, max(map(len, prompts))
        mask_id, pad = config.vocab_size, config.pad_token_id
        rows = [[*p, *[mask_id] * budget, *[pad] * (rest - len(p))] for p in prompts]
        tokens, lengths = torch.tensor(rows, device=device), torch.tensor([len(p) for p in prompts], device=device)
        generators = [torch.Generator().manual_seed((settings["seed"] << 32) + i) for i in range(len(prompts))]
        seen = torch.zeros(len(prompts), config.vocab_size, dtype=torch.bool, device=device)
        size, steps = block_schedule(budget, settings["block_length"], settings["steps"])
        answers = [[] for _ in prompts]
        for block in range(budget // size):
            places = (lengths + block * size)[:, None] + torch.arange(size, device=device)
            for step in range(steps):
                logits = self._block_logits(tokens, lengths, budget, places, settings["guidance"])
                drawn = choose(
                    with_text(logits, config), seen, generators, settings["temperature"], settings["top_k"],
                    settings["top_p"], settings["repetition_penalty"],
                )  # fmt: skip
                certainty = odds_of(logits, drawn)
                now = tokens.gather(1, places)
                kept = most_certain(certainty, now == mask_id, size // steps + (step < size % steps))
                tokens.scatter_(1, places, torch.where(kept, drawn, now))
                seen |= F.one_hot(drawn, config.vocab_size).bool().logical_and(kept[..., None]).any(1)
            uncovered = [row[n : n + (block + 1) * size] for row, n in zip(tokens.tolist(), lengths, strict=True)]
            found = [answer(row, budget, config.eos_token_id) for row in uncovered]
            answers = [new for new, _ in found]
            if all(ended for _, ended in found):
                break
        return answers

    def _block_logits(self, tokens, lengths, budget, places, guidance):
        """Of a block's tokens, (B, S, V), with the prompt, and away from what they are without it."""
        position = torch.arange(tokens.shape[1], device=tokens.device)
        used = position < (lengths + budget)[:, None]

        def logits_of(tokens):
            hidden = self.model(tokens, used)
            return self._logits(hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1])))

        logits = logits_of(tokens)
        if guidance != 1:
            alone = logits_of(torch.where(position < lengths[:, None], self.config.vocab_size, tokens))
            logits = alone + guidance * (logits - alone)
        return logits


def block_schedule(budget, block_length, steps):
    """(tokens of a block, steps of a block). ValueError on what does not divide."""
    size, steps = block_length or budget, steps or budget
    if budget % size:
        raise ValueError(f"block_length is {size}: expected a divisor of max_new_tokens ({budget}), or 0")
    if steps % (budget // size):
        raise ValueError(f"steps is {steps}: expected a multiple of the {budget // size} blocks of {size} tokens")
    return size, min(size, steps // (budget // size))


def odds_of(logits, tokens):
    """log p / (1 - p) of tokens, p under the plain softmax, (B, S): it tells what is more where p rounds to 1."""
    own = logits.gather(-1, tokens[..., None])
    return (own - logits.scatter(-1, tokens[..., None], float("-inf")).logsumexp(-1, keepdim=True))[..., 0]


def most_certain(certainty, masked, count):
    """Which masked tokens are kept: the `count` of the highest certainty, of equals the first. (B, S) booleans."""
    falling = certainty.masked_fill(~masked, float("-inf")).argsort(dim=-1, descending=True, stable=True)
    return masked & (falling.argsort(dim=-1, stable=True) < count)


# So that save_pretrained writes these classes beside the weights.
LladaModel.register_for_auto_class("AutoModel")
