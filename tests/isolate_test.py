"""Documents that share a row: no gradient from one to another, and the loss of each in a row of its own."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
from masks_test import EARLIER, LATENTS, SAME, SAMPLES, influence, module_of, normal, two_copies
from mesh_test import assert_same_gradients, run_worker
from tiny_runs import END, PAD, SEQUENCE_LENGTH, VOCABULARY, make_frozen, make_params, make_stage, make_tokens

from colajax.hf import layout
from colajax.keys import training_draw
from colajax.models.layers import Functional
from colajax.models.llama import Llama
from colajax.stages.base import documents_of
from colajax.train.step import loss_and_means

STAGES = ("vae", "joint", "ar", "llada")
# Blocks are of 4: one that holds three documents, one that begins with a document, one without a second one.
DOCUMENTS = np.array([[0, 0, 0, 1, 2, 2, 2, 2, 2, 2], [0, 0, 0, 0, 0, 1, 2, 2, 2, 2]])
rng = np.random.default_rng(0)


def isolated(mask):
    """Who sees whom in its own document, (samples * L, samples * L), by who would see whom in a row."""
    seen = np.zeros((SAMPLES, len(mask), SAMPLES, len(mask)), bool)
    for i, numbers in enumerate(np.tile(DOCUMENTS, len(mask) // LATENTS)):
        seen[i, :, i] = mask & (numbers[:, None] == numbers)
    return seen.reshape(SAMPLES * len(mask), -1)


def test_an_end_of_text_is_of_the_document_that_it_ends():
    tokens = np.array([[7, END, 8, 9, END, END, PAD, PAD], [7, 8, 9, 7, 8, 9, 7, 8]])
    np.testing.assert_array_equal(documents_of(tokens, END), [[0, 0, 1, 1, 1, 2, 3, 3], [0] * 8])


# ---- exact zero gradients --------------------------------------------------------------------------------------------
def seen_by_tokens(outputs, params):
    """Gradients of `outputs(params, tokens)` by the embeddings of the tokens. Each position is its own token, so that a
    row of the table stands for a position."""
    table = params["embedding"]["embedding"]
    tokens = rng.permutation(len(table) - 1)[: SAMPLES * LATENTS]

    def of_table(table):
        return outputs({**params, "embedding": {"embedding": table}}, tokens.reshape(SAMPLES, -1))

    return influence(of_table, table, 1)[:, tokens] > 0


@pytest.mark.parametrize("block_causal", [True, False])
def test_encoder_and_decoder(block_causal):
    config = dataclasses.replace(tiny_models.VAE, block_causal=block_causal)
    vae, params = Functional(layout.VAE.make, config), tiny_models.random_params(layout.VAE, config)
    expected = isolated(EARLIER | SAME if block_causal else np.ones_like(SAME))

    def posterior(encoder, tokens):
        bound = vae.bind(params | {"encoder": encoder})
        return jnp.concatenate(bound.encoder(tokens, documents_BxL=DOCUMENTS), axis=-1)

    np.testing.assert_array_equal(seen_by_tokens(posterior, params["encoder"]), expected)
    decoder = vae.bind(params).decoder
    seen = influence(lambda z: decoder(z, documents_BxL=DOCUMENTS)[0], normal(SAMPLES, LATENTS, 4), 1)
    np.testing.assert_array_equal(seen > 0, expected)


def test_prior_in_both_copies():
    dit = module_of(layout.DIT, tiny_models.DIT)
    seen = influence(lambda z: two_copies(dit, z, documents_BxL=DOCUMENTS), normal(SAMPLES, 2, LATENTS, 4), 1)
    clean_then_noisy = np.block([[EARLIER | SAME, np.zeros_like(SAME)], [EARLIER, SAME]])
    np.testing.assert_array_equal(seen > 0, isolated(clean_then_noisy))


@pytest.mark.parametrize("causal", [True, False])
def test_baselines(causal):
    llama = Functional(Llama, tiny_models.LLAMA, causal=causal, mask_row=True)
    seen = seen_by_tokens(
        lambda params, tokens: llama.bind(params)(tokens, documents_BxT=DOCUMENTS)[0],
        tiny_models.random_tree(llama.shapes()),
    )
    np.testing.assert_array_equal(seen, isolated(np.tri(LATENTS, dtype=bool) if causal else np.ones_like(SAME)))


# ---- packed is alone -------------------------------------------------------------------------------------------------
# Lengths of the documents in each row. Those of stages with blocks, of 4, begin where a block does; the baselines have
# none. A row without an end is a piece of a longer document.
IN_BLOCKS = ((12, 8, 7), (4, 28), (16, 4, 12), (SEQUENCE_LENGTH,))
ANYWHERE = ((13, 2, 8), (5, 27), (1, 21, 10), (SEQUENCE_LENGTH,))
PATCH = {name: ("vae.patch_size=1", "objective.mask_every=1") if name in ("vae", "joint") else () for name in STAGES}
DRAWN = {
    "vae": ("posterior_noise", "masked", "masked_posterior_noise"), "ar": (), "llada": ("time", "weight"),
    "joint": ("posterior_noise", "masked", "masked_posterior_noise", "noise", "given", "time"),
}  # fmt: skip


class Rows:
    """The same documents packed, and each in a row of its own; as many rows, of which the last packed ones are padding.
    """

    def __init__(self, name: str):
        lengths = IN_BLOCKS if PATCH[name] else ANYWHERE
        self._places = [(row, sum(of_row[:i]), length) for row, of_row in enumerate(lengths)
                        for i, length in enumerate(of_row)]  # fmt: skip
        self._drawn = DRAWN[name]
        self.tokens = np.full((len(self._places), SEQUENCE_LENGTH), PAD, np.int32)
        for row, begin, length in self._places:
            self.tokens[row, begin : begin + length] = rng.integers(END + 1, VOCABULARY, length)
            if length < SEQUENCE_LENGTH:
                self.tokens[row, begin + length - 1] = END

    def apart(self, x):
        """What each document has of an array (B, T, ...), at the head of a row of its own; of (B,), its row's."""
        x = np.asarray(x)
        if x.ndim == 1:
            return x[[row for row, _, _ in self._places]]
        found = np.zeros_like(x)  # padding is 0
        for i, (row, begin, length) in enumerate(self._places):
            found[i, :length] = x[row, begin : begin + length]
        return found

    def examples(self, stage, tokens) -> tuple[dict, dict]:
        """Of these rows, packed and alone, with the same noise at the same token."""
        draw = training_draw(1, 5, jnp.arange(len(tokens)))
        packed, alone = (stage.examples(rows, draw) for rows in (tokens, self.apart(tokens)))
        return packed, alone | {name: self.apart(packed[name]) for name in self._drawn}


def norm(tree) -> float:
    return float(jnp.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(tree))))


def distance(found, expected) -> float:
    """Of two gradients, as a share of the second."""
    return norm(jax.tree.map(jnp.subtract, found, expected)) / norm(expected)


@pytest.mark.parametrize("name", STAGES)
def test_documents_in_one_row_have_the_loss_and_gradients_of_each_alone(name):
    rows = Rows(name)
    stage, _ = make_stage(name, "isolate_documents=True", *PATCH[name])
    params, frozen = make_params(stage), make_frozen(stage)

    @jax.jit
    def run(examples):
        """Gradients, (loss, means and counts)"""
        counts = stage.counts(examples)

        def loss_of(params):
            loss, means = loss_and_means(stage, params, frozen, examples, counts, stage.groups)
            return loss, (loss, means, counts)

        return jax.grad(loss_of, has_aux=True)(params)

    (packed, figures), (alone, expected) = map(run, rows.examples(stage, rows.tokens))
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6), figures, expected)
    assert distance(packed, alone) < 1e-5
    # The same rows where no document ends are one document each, and this is seen.
    (packed, _), (alone, _) = map(run, rows.examples(stage, np.where(rows.tokens == END, END + 1, rows.tokens)))
    assert distance(packed, alone) > 0.01


# ---- what it costs where it is off, and where it runs ----------------------------------------------------------------
@pytest.mark.parametrize("name", STAGES)
def test_off_the_program_knows_no_end_of_text_and_has_no_mask_of_documents(name):
    def program(isolate, end):
        stage, _ = make_stage(name, f"isolate_documents={isolate}", *PATCH[name])
        stage.eos_id = end

        def terms(params, frozen, tokens):
            examples = stage.examples(tokens, training_draw(0, 0, jnp.arange(len(tokens))))
            return stage.terms(params, frozen, examples, stage.groups, True), stage.counts(examples)

        return jax.jit(terms).lower(make_params(stage), make_frozen(stage), make_tokens()).as_text()

    # (B, 1, blocks, queries, keys) of a block's own keys, of the row's, or of a row that is one block.
    mask = re.compile(r"tensor<\d+x1x(8x4x4|8x4x32|1x32x32)xi1>")
    on, off = program(True, END), program(False, END)
    assert off == program(False, END + 1)
    assert on != program(True, END + 1)
    assert mask.search(on)
    assert not mask.search(off)


def test_on_a_mesh_the_loss_and_the_gradients_are_those_of_one_device():
    """All axes at once, with rematerialisation; in bfloat16 near them."""
    runs = [
        ("joint", "isolate_documents=True", "remat=dots", *PATCH["joint"][:1]),
        ("llada", "isolate_documents=True", "remat=dots", "compute_dtype=bfloat16"),
    ]
    found = run_worker([("gradients", mesh, *run) for run in runs for mesh in ("2,2,2", "one")])
    assert_same_gradients(*found[:2])
    ours, theirs = (np.array(result["gradients"]) for result in found[2:])
    assert 0 < np.linalg.norm(ours - theirs) <= 0.01 * np.linalg.norm(theirs)
