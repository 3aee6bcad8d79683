"""From logits to tokens: repetition penalty, temperature, top-k, top-p, in this order."""

import jax
import jax.numpy as jnp


def penalise(logits_BxTxV, seen_BxV, penalty):
    """Makes tokens already seen less likely: negative logits times the penalty, others over it."""
    lowered = jnp.where(logits_BxTxV < 0, logits_BxTxV * penalty, logits_BxTxV / penalty)
    return jnp.where(seen_BxV[:, None], lowered, logits_BxTxV)


def restrict(scores, top_k, top_p):
    """-inf for every token outside the top_k best and, of those, outside the smallest set of probability top_p.

    scores: (..., V); top_k 0 and top_p 1 restrict nothing; what ties with the last token kept is kept too.
    """
    ordered = jnp.sort(scores, axis=-1, descending=True)
    vocabulary = scores.shape[-1]
    last = jnp.where(top_k == 0, vocabulary, jnp.minimum(top_k, vocabulary)) - 1
    ordered = jnp.where(ordered >= ordered[..., last, None], ordered, -jnp.inf)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    # The sum may round to 1 before the last token, so 1 has to be named.
    kept = (ordered > -jnp.inf) & ((before < top_p) | (top_p >= 1))
    threshold = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(scores >= threshold, scores, -jnp.inf)


def choose(logits_BxTxV, seen_BxV, keys_B, *, temperature, top_k, top_p, repetition_penalty):
    """Tokens (B, T) int32. seen: the tokens that the penalty counts; keys: one PRNG key a sample; the rest are scalars,
    traced, so that no value of them compiles anew. Temperature 0 takes the best token."""
    scores = penalise(logits_BxTxV, seen_BxV, repetition_penalty)

    def draw(scores):
        scores = restrict(scores / temperature, top_k, top_p)
        return jax.vmap(lambda key, s: jax.random.categorical(key, s, axis=-1))(keys_B, scores)

    best = lambda scores: jnp.argmax(scores, axis=-1)  # noqa: E731
    return jax.lax.cond(temperature == 0, best, draw, scores).astype(jnp.int32)
