"""The Cola model once more, slow and obvious: numpy in float64, one sample, dense masks, no cache.

Written from the description of the model and of the released files, on the released tensor names; it shares no code
with colajax. `w` maps a tensor name to its array, `c` is the config.json.
"""

import math

import numpy as np
import safetensors.numpy

erf = np.vectorize(math.erf, otypes=[float])


def read(folder):
    """The tensors of a model folder in float64."""
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    return {name: array.astype(np.float64) for name, array in tensors.items()}


def linear(w, name, x):
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)


def layer_norm(x, eps, scale=1.0, shift=0.0):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale + shift


def named_norm(w, name, x, eps):
    return layer_norm(x, eps, w.get(f"{name}.weight", 1.0), w.get(f"{name}.bias", 0.0))


def silu(x):
    return x / (1 + np.exp(-x))


def attention(q, k, v, mask):
    """q, k, v: (H, S, K); mask: (S, S), True where row sees column."""
    scores = np.where(mask, q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1]), -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


def block_mask(length, size):
    block = np.arange(length) // size
    return block[:, None] >= block[None, :]


def vae_mask(c, length):
    return block_mask(length, c["block_size"] if c["block_causal"] else length)


def _vae_blocks(c, w, side, x, mask):
    heads, eps = c["num_heads"], c["layer_norm_eps"]
    half = c["dim"] // heads // 2
    angles = np.arange(len(x))[:, None] * c["rope_theta"] ** (-np.arange(half) / half)
    cos, sin = np.cos(angles), np.sin(angles)

    def rotate(a):  # pair i is (i, i + half)
        first, second = a[..., :half], a[..., half:]
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)

    def feed_forward(name, h):
        h = linear(w, f"{name}.ffn_proj", h)
        if c["act"] == "swiglu":
            value, gate = np.split(h, 2, -1)
            h = silu(gate) * value
        else:
            h = silu(h) if c["act"] == "silu" else h * (1 + erf(h / math.sqrt(2))) / 2
        return linear(w, f"{name}.ffn_out", h)

    for i in range(c[f"{side}_num_blocks"]):
        name = f"{side}.blocks.{i}"
        normed = named_norm(w, f"{name}.norm_attn", x, eps)
        q, k, v = np.split(linear(w, f"{name}.qkv_proj", x if c["post_norm"] else normed), 3, -1)
        if c["clip_qkv"] is not None:
            q, k, v = (np.clip(a, -c["clip_qkv"], c["clip_qkv"]) for a in (q, k, v))
        if c["qk_norm"]:
            q, k = named_norm(w, f"{name}.q_norm", q, eps), named_norm(w, f"{name}.k_norm", k, eps)
        q, k, v = (a.reshape(len(x), heads, -1).transpose(1, 0, 2) for a in (q, k, v))
        o = attention(rotate(q), rotate(k), v, mask).transpose(1, 0, 2).reshape(len(x), -1)
        a = linear(w, f"{name}.attn_out_proj", o)
        if c["post_norm"]:
            x = normed + a
            x = x + named_norm(w, f"{name}.norm_ffn", feed_forward(name, x), eps)
        else:
            x = x + a
            x = x + feed_forward(name, named_norm(w, f"{name}.norm_ffn", x, eps))
    return x


def encode(c, w, tokens):
    """tokens: (T,) -> mean (L, d), and logvar or None."""
    patch, kernel = c["patch_size"], w["encoder.patch_embedder.weight"]
    e = w["encoder.wte.weight"][np.asarray(tokens, int)].reshape(-1, patch, c["dim"])
    x = sum(e[:, p] @ kernel[:, :, p].T for p in range(patch)) + w["encoder.patch_embedder.bias"]
    head = linear(w, "encoder.final_layer", _vae_blocks(c, w, "encoder", x, vae_mask(c, len(x))))
    mean, logvar = np.split(head, 2, -1) if c["use_variation"] else (head, None)
    mean = layer_norm(mean, c["layer_norm_eps"]) if c["encoder_last_ln"] else mean
    return mean, None if logvar is None else np.clip(logvar, -30, 20)


def decode(c, w, z, mask=None):
    """z: (L, d) -> logits (T, V)."""
    x = linear(w, "decoder.in_layer", z)
    x = _vae_blocks(c, w, "decoder", x, vae_mask(c, len(x)) if mask is None else mask)
    x = linear(w, "decoder.unpatch_layer", x)
    x = np.stack([x[l, p :: c["patch_size"]] for l in range(len(x)) for p in range(c["patch_size"])])  # noqa: E741
    return linear(w, "decoder.final_layer", named_norm(w, "decoder.final_norm", x, c["layer_norm_eps"]))


def dit(c, w, z, times, positions, mask):
    """Velocity (S, d) of latents (S, d), each with its own time in 0..1 and position, under a dense mask (S, S)."""
    eps, size = c["norm_eps"], len(z)
    angles = np.asarray(times)[:, None] * 1000 * np.exp(-math.log(10000) * np.arange(128) / 128)
    e = np.concatenate([np.sin(angles), np.cos(angles)], -1)
    e = linear(w, "emb_in.proj_out", silu(linear(w, "emb_in.proj_hid", silu(linear(w, "emb_in.proj_in", e)))))
    angles = np.asarray(positions)[:, None] * 10000.0 ** (-np.arange(0, c["rope_dim"], 2) / max(c["rope_dim"], 1))
    turn = np.exp(1j * angles)

    def rotate(a):  # pair i is (2i, 2i + 1), a complex number
        a, rope = a.copy(), c["rope_dim"]
        turned = (a[..., 0:rope:2] + 1j * a[..., 1:rope:2]) * turn
        a[..., 0:rope:2], a[..., 1:rope:2] = turned.real, turned.imag
        return a

    def modulated(name, x):
        shift, scale = np.split(linear(w, name, silu(e)), 2, -1)
        return x * (1 + scale) + shift

    x = linear(w, "txt_in.proj", z)
    for i in range(c["num_layers"]):
        msa, mlp, ada = (f"blocks.{i}.{part}" for part in ("msa", "mlp", "ada"))
        qkv = linear(w, f"{msa}.proj_qkv", modulated(f"{ada}.msa_in.1", layer_norm(x, eps)))
        q, k, v = qkv.reshape(size, 3, c["heads"], c["head_dim"]).transpose(1, 2, 0, 3)
        q, k = named_norm(w, f"{msa}.norm_q", q, eps), named_norm(w, f"{msa}.norm_k", k, eps)
        o = attention(rotate(q), rotate(k), v, mask).transpose(1, 0, 2).reshape(size, -1)
        x = x + linear(w, f"{ada}.msa_out.1", silu(e)) * linear(w, f"{msa}.proj_out", o)
        h = linear(w, f"{mlp}.proj_in", modulated(f"{ada}.mlp_in.1", layer_norm(x, eps)))
        h = 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        x = x + linear(w, f"{ada}.mlp_out.1", silu(e)) * linear(w, f"{mlp}.proj_out", h)
    return linear(w, "txt_out.proj", modulated("txt_out_ada.out_in.1", named_norm(w, "txt_out_norm", x, eps)))


def dit_two_copies(c, w, z0, zt, times):
    """Training layout: (velocity of the clean copy, of the noisy copy); times: (L,) of the noisy one."""
    length = len(z0)
    block = np.arange(length) // c["block_size"]
    earlier, same = block[:, None] > block[None, :], block[:, None] == block[None, :]
    mask = np.block([[earlier | same, np.zeros_like(same)], [earlier, same]])
    z, t = np.concatenate([z0, zt]), np.concatenate([np.zeros(length), times])
    v = dit(c, w, z, t, np.tile(np.arange(length), 2), mask)
    return v[:length], v[length:]


def generate(vae, dit_model, prompt, noise, *, steps, guidance, pad, penalty=1.0):
    """The blocks of one sample at temperature 0, all recomputed at every step; vae, dit_model: (config, tensors);
    noise: (blocks, bs, d). Returns logits (blocks, bs * patch, V) and tokens (blocks, bs * patch)."""
    (vc, vw), (dc, dw) = vae, dit_model
    size, patch = dc["block_size"], vc["patch_size"]
    padded = list(prompt) + [pad] * (-len(prompt) % (size * patch))
    z = encode(vc, vw, padded)[0] if padded else np.zeros((0, vc["latent_dim"]))
    z = (z - vc["shifting_factor"]) * vc["scaling_factor"]
    z = z[: -(-len(prompt) // patch)]
    prefix = len(z) // size * size
    finished, rest = z[:prefix], z[prefix:]
    all_logits, all_tokens = [], []
    for n, drawn in enumerate(noise):
        held = rest if n == 0 else rest[:0]
        block = np.concatenate([held, drawn[len(held) :]])
        s = 1.0 if len(finished) == 0 else guidance
        for step in range(steps):
            t = np.where(np.arange(size) < len(held), 0.0, 1 - step / steps)
            whole = np.concatenate([finished, block])
            times, mask = np.concatenate([np.zeros(len(finished)), t]), block_mask(len(whole), size)
            conditional = dit(dc, dw, whole, times, np.arange(len(whole)), mask)[len(finished) :]
            alone = dit(dc, dw, block, t, np.arange(size), np.ones((size, size), bool))
            v = alone + s * (conditional - alone)
            block = np.concatenate([held, (block - v / steps)[len(held) :]])
        finished = np.concatenate([finished, block])
        # Without block_causal the prefix sees all of itself, and each block what was there when it was decoded.
        when = np.where(np.arange(len(finished)) < prefix, -1, np.arange(len(finished)) // size)
        mask = None if vc["block_causal"] else when[:, None] >= when[None, :]
        logits = decode(vc, vw, finished, mask)[-size * patch :]
        scores = logits.copy()
        for token in {token for tokens in all_tokens for token in tokens}:
            column = scores[:, token]
            scores[:, token] = np.where(column < 0, column * penalty, column / penalty)
        all_logits.append(logits)
        all_tokens.append(scores.argmax(-1).tolist())
    return np.stack(all_logits), all_tokens
