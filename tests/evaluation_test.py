"""Which held-out rows are evaluated, in which pairs, and that the figures depend on nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import PAD, ROWS, SEQUENCE_LENGTH, VOCABULARY, make_frozen, make_params, make_stage, make_tokens

from colajax.keys import Purpose, evaluation_draw, sample_keys
from colajax.parallel.mesh import ONE_DEVICE, make_mesh
from colajax.train.evaluation import NO_ROW, choose_rows, held_out_batches, make_evaluation
from colajax.train.state import TrainState
from colajax.train.step import loss_and_means

MESH = make_mesh(ONE_DEVICE, jax.devices()[:1])


def flat(count, wanted, batch_size, seed=0):
    rows = choose_rows(count, wanted, batch_size, seed).reshape(-1)
    return rows[rows != NO_ROW]


@pytest.mark.parametrize(("count", "wanted"), [(1000, 64), (1000, 63), (64, 64), (7, 100), (2, 8), (1, 8)])
def test_every_row_comes_once_whatever_the_batch_size(count, wanted):
    expected = min(count, wanted) // 2 * 2 or 1
    rows = flat(count, wanted, 8)
    assert len(set(rows)) == len(rows) == expected
    assert rows.max() < count
    for batch_size in (1, 2, 3, 12, 64, 1000):
        np.testing.assert_array_equal(flat(count, wanted, batch_size), rows)
        assert choose_rows(count, wanted, batch_size, 0).shape[1] % 2 == 0  # partners are in one batch


def test_rows_are_drawn_from_the_whole_split():
    rows = flat(100_000, 1408, 64)
    by_tenth = np.bincount(rows // 10_000, minlength=10)
    assert by_tenth.min() > 90  # 140.8 expected
    assert np.any(rows != flat(100_000, 1408, 64, seed=1))
    for every in (2, 4):  # and so are those that have a masked view
        assert abs(rows[::every].mean() / 50_000 - 1) < 0.1


def test_partners_are_of_other_documents():
    """A document's pieces lie on neighbouring rows; here one fills 40 rows of 1000."""
    rows = flat(1000, 256, 32)
    documents = rows // 40
    assert np.all(documents[0::2] != documents[1::2])


class Split:
    """Rows of a split as `data.loader.Loader` hands them out."""

    def __init__(self, count):
        self._rows = np.concatenate([make_tokens(seed) for seed in range(count // ROWS + 1)])[:count]
        self.rows = count

    def sequential(self, indices):
        return self._rows[np.asarray(indices)]


@pytest.fixture(scope="module")
def joint():
    stage, _ = make_stage("joint")
    return stage, TrainState(jnp.int32(0), make_params(stage), {}, make_frozen(stage))


@pytest.fixture(scope="module")
def means(joint):
    """{batch size: what an evaluation of 12 of 20 rows finds}"""
    stage, state = joint
    evaluate, split = make_evaluation(stage, MESH), Split(20)

    def of(batch_size):
        given = dict(wanted=12, batch_size=batch_size, pad_id=PAD, seed=3)
        return evaluate(state, held_out_batches(split, MESH, range(20), **given))

    return {size: of(size) for size in (4, 8)}


def test_figures_do_not_depend_on_the_batch_size(means):
    for name, value in means[8].items():
        np.testing.assert_allclose(means[4][name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_figures_are_the_loss_over_the_rows_with_each_row_s_own_noise(joint, means):
    stage, state = joint
    rows = flat(20, 12, 8, seed=3)
    examples = stage.examples(jnp.asarray(Split(20).sequential(rows)), evaluation_draw(rows.astype(np.uint32)))
    loss, by_hand = jax.jit(
        lambda: loss_and_means(stage, state.params, state.frozen, examples, stage.counts(examples), stage.groups)
    )()
    np.testing.assert_allclose(means[8]["loss"], loss, rtol=1e-5)
    for name in by_hand:
        np.testing.assert_allclose(means[8][name], by_hand[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_context_gain_is_against_the_partner_s_prefix(joint, means):
    """As a loss of its own: each row's noisy copy is scored beside the clean copy of its partner."""
    stage, state = joint
    rows = flat(20, 12, 8, seed=3)
    tokens, draw = jnp.asarray(Split(20).sequential(rows)), evaluation_draw(rows.astype(np.uint32))
    partner = np.arange(12) ^ 1
    examples = stage.examples(tokens, draw)

    def clean(tokens, noise):
        vae = stage.vae.bind(state.params["vae"])
        mean, logvar = vae.encoder(tokens)
        return (mean + jnp.exp(logvar / 2) * noise - 0.1) * 1.25

    @jax.jit
    def swapped():
        z = clean(examples["tokens"], examples["posterior_noise"])
        t, noise, given = examples["time"], examples["noise"], examples["given"]
        noisy = jnp.where(given[..., None], z, (1 - t)[:, None, None] * z + t[:, None, None] * noise)
        is_noisy = jnp.stack([jnp.zeros_like(given), ~given], 1)
        velocity = stage.dit.bind(state.params["dit"])(
            jnp.stack([z[partner], noisy], 1), t, is_noisy, jnp.arange(z.shape[1])
        )[0][:, 1]
        text = (examples["tokens"] != PAD).reshape(12, -1, 2).any(-1) & ~given
        return (((velocity - (noise - z)) ** 2).mean(-1) * text).sum() / text.sum()

    expected = float(swapped())
    assert means[8]["flow_swapped"] == pytest.approx(expected, rel=1e-4)
    assert abs(expected - means[8]["flow"]) > 1e-4
    report = stage.summarise(dict(means[8]))
    gain = (expected - means[8]["flow"]) / means[8]["flow_floor"]
    assert report["context_gain"] == pytest.approx(gain, rel=1e-3, abs=1e-5)


def test_no_update_of_any_seed_draws_what_a_row_draws():
    rows = np.arange(50, dtype=np.uint32)
    drawn = {tuple(key) for p in Purpose for key in np.asarray(jax.random.key_data(evaluation_draw(rows)(p))).tolist()}
    assert len(drawn) == len(Purpose) * 50
    for seed in (0, 66, 2**31 - 1, 2**32 - 1):
        for purpose in set(Purpose) - {Purpose.EVALUATION}:  # which no update draws for
            keys = sample_keys(seed, purpose, jnp.int32(0), np.arange(50))
            assert not drawn & {tuple(key) for key in np.asarray(jax.random.key_data(keys)).tolist()}


def test_shapes_are_those_of_whole_batches():
    batches = held_out_batches(Split(20), MESH, range(20), wanted=12, batch_size=8, pad_id=PAD, seed=3)
    assert [tokens.shape for tokens, _ in batches] == [(8, SEQUENCE_LENGTH)] * 2
    last = np.asarray(batches[-1][0])
    assert np.all(last[4:] == PAD)
    assert last.max() < VOCABULARY
