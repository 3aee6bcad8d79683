"""Mixtures of records folders: every share to the row, whatever process, start or change of weights."""

import collections
import json
import shutil

import grain
import numpy as np
import pytest
import tiny_runs
from corpora import make_records, write_corpus
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import error_of, error_of_training

from colajax.data.loader import Loader
from colajax.data.mixture import Interleaving, met, schedule_of
from colajax.data.prepare import prepare
from colajax.data.tokenizer import train_sentencepiece
from colajax.stages.vae import VAEStage
from colajax.train.loop import train

LENGTH, BATCH, SEED = 16, 5, 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three records folders of one tokenizer, {name: folder}, whose rows say where they are from."""
    path = tmp_path_factory.mktemp("mixture")
    texts = {name: [f"{name} {i} " + "word " * (i % 9) for i in range(count)]
             for name, count in (("web", 70), ("books", 50), ("code", 90))}  # fmt: skip
    train_sentencepiece([text for of in texts.values() for text in of], path / "t.model", 400)
    for name, of in texts.items():
        corpus = write_corpus(path / f"{name}.jsonl", of)
        prepare([corpus], path / "t.model", path / name, LENGTH, validation_fraction=0.2)
    return {name: path / name for name in texts}


def schedule(folders, *entries: tuple[int, dict]) -> str:
    return repr(tuple((step, {str(folders[name]): weight for name, weight in of.items()}) for step, of in entries))


def loader_of(records, split="train") -> Loader:
    return Loader(records, split, BATCH, LENGTH, SEED)


def sources_of(loader, steps: range) -> list[str]:
    """Of each row of these batches, from the row itself."""
    names = [name for name, rows in loader.sources.items() for _ in rows]
    return [names[row] for step in steps for row in loader.rows_of(step)]


@given(weights=st.lists(st.integers(0, 30), min_size=1, max_size=5).filter(any), places=st.integers(0, 500))
@settings(deadline=None)
def test_each_beginning_has_the_shares_and_each_period_to_the_row(weights, places):
    interleaving = Interleaving(weights)
    found = [interleaving.at(place) for place in range(places)]
    for source, weight in enumerate(weights):
        assert [had for of, had in found if of == source] == list(range(sum(of == source for of, _ in found)))
        assert abs(sum(of == source for of, _ in found) - places * weight / sum(weights)) <= 1.5
    assert interleaving.counts(places).tolist() == [sum(of == i for of, _ in found) for i in range(len(weights))]
    assert interleaving.counts(7 * sum(weights)).tolist() == [7 * weight for weight in weights]


def test_shares_are_exact_over_ten_thousand_steps(folders):
    loader = loader_of(schedule(folders, (0, {"web": 0.7, "books": 0.2, "code": 0.1})))
    # Grain takes most of a millisecond to shuffle an index of so few rows: here a row says no more than its source.
    loader._orders = [[10**6 * source] * 10**5 for source in range(3)]
    counts = collections.Counter(row // 10**6 for step in range(10_000) for row in loader.rows_of(step))
    assert counts == {0: 35_000, 1: 10_000, 2: 5_000}
    expected = {name: counts[i] / len(rows) for i, (name, rows) in enumerate(loader.sources.items())}
    assert loader.epochs(10_000) == pytest.approx(expected)
    assert loader.shares(0) == pytest.approx({"web": 0.7, "books": 0.2, "code": 0.1})


def test_a_source_of_a_mixture_has_the_order_that_it_has_alone(folders):
    mixed = loader_of(schedule(folders, (0, {"web": 2, "books": 1}), (40, {"books": 3, "code": 1, "web": 1})))
    for name in ("web", "books"):
        alone, source = loader_of(folders[name]), mixed.sources[name]
        rows = [row - source.start for step in range(120) for row in mixed.rows_of(step) if row in source]
        order = grain.MapDataset.range(alone.rows).shuffle(seed=SEED).repeat()
        assert rows == [order[i] for i in range(len(rows))]
        assert rows == [row for step in range(120) for row in alone.rows_of(step)][: len(rows)]
        assert len(rows) > 2 * alone.rows


def test_a_batch_has_the_rows_of_its_sources_in_every_process(folders):
    given = schedule(folders, (0, {"web": 0.5, "code": 0.5}), (7, {"books": 1.0, "code": 0.25}))
    loader = loader_of(given)
    alone = {name: loader_of(folders[name]).records for name in folders}
    for step in (0, 6, 7, 1234):
        expected = []
        for row in loader.rows_of(step):
            name, rows = next((name, rows) for name, rows in loader.sources.items() if row in rows)
            expected.append(alone[name].read([row - rows.start])[0])
        np.testing.assert_array_equal(loader.batch(step), expected)
        for rows in ([0], [3, 1], [4, 2, 0]):
            np.testing.assert_array_equal(loader.batch(step, rows), loader.batch(step)[rows])
        np.testing.assert_array_equal(next(loader_of(given).iterate(step)), loader.batch(step))


def test_weights_that_change_leave_what_was_before_as_it_is(folders):
    before = loader_of(schedule(folders, (0, {"web": 0.9, "books": 0.1})))
    after = loader_of(schedule(folders, (0, {"web": 0.9, "books": 0.1}), (50, {"web": 0.2, "books": 0.3, "code": 0.5})))
    assert [after.rows_of(step) for step in range(50)] == [before.rows_of(step) for step in range(50)]
    counts = collections.Counter(sources_of(after, range(50, 60)))
    assert counts == {"web": 10, "books": 15, "code": 25}
    assert after.shares(49)["code"] == 0
    assert after.shares(50)["code"] == 0.5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "--config.records=DIR"),
        ("(web", "expected a folder"),
        ("()", "expected a folder"),
        ("((0, 'web'),)", "expected a folder"),
        ("((0, {}),)", "expected a folder"),
        ("((0, {'web': 1}), 3)", "expected a folder"),
        ("((0.5, {'web': 1}),)", "expected a folder"),
        ("((5, {'web': 1}),)", "steps [5]"),
        ("((0, {'web': 1}), (9, {'web': 2}), (9, {'web': 1}))", "steps [0, 9, 9]"),
        ("((0, {'web': -1, 'books': 2}),)", "weights of step 0"),
        ("((0, {'web': 1}), (4, {'web': 0, 'books': 0.0}))", "weights of step 4"),
        ("((0, {'web': float}),)", "expected a folder"),
        ("((0, {'web': '1'}),)", "weights of step 0"),
        ("((0, {'web': 1e999}),)", "weights of step 0"),
        ("((0, {'web': 0.123456789, 'books': 1}),)", "round them"),
        ("(" * 500, "expected a folder"),
    ],
)
def test_what_is_no_mixture_is_one_line(text, said):
    message = error_of(lambda: schedule_of(text))
    assert said in message
    assert "\n" not in message
    assert "config.records" in message


def test_sources_of_other_tokenizers_and_lengths_are_refused(folders, tmp_path):
    texts = [f"one two three {i}" for i in range(40)]
    make_records(tmp_path, texts, LENGTH, vocab_size=280, validation_fraction=0.2).rename(tmp_path / "other")
    tokenizer = folders["web"].parent / "t.model"
    prepare([tmp_path / "a.jsonl"], tokenizer, tmp_path / "long", 2 * LENGTH, validation_fraction=0.2)
    for name, said in (("other", "another tokenizer"), ("long", "rows of another length")):
        mixed = schedule(folders | {name: tmp_path / name}, (0, {"web": 1, name: 1}))
        message = error_of(lambda mixed=mixed: loader_of(mixed))
        assert said in message
        assert str(tmp_path / name) in message


@pytest.fixture(scope="module")
def two(records, tmp_path_factory):
    """The records of the tests and a copy with another name: what a source is called is its folder's name."""
    folder = tmp_path_factory.mktemp("two")
    for name in ("a", "b"):
        shutil.copytree(records, folder / name)
    metadata = json.loads((folder / "b" / "metadata.json").read_text())
    metadata["settings"]["seed"] += 1  # as if it were made otherwise
    (folder / "b" / "metadata.json").write_text(json.dumps(metadata))
    return {name: folder / name for name in ("a", "b")}


def config_of(records: str, *overrides: str):
    return tiny_runs.tiny_config("vae", f"records={records}", *overrides)


def test_a_run_goes_on_with_the_mixture_that_it_has_had(two, tmp_path, capsys):
    """Alone, and stopped at step 8 and gone on with under weights that are others from there on."""
    first, later = (0, {"a": 0.75, "b": 0.25}), (8, {"a": 0.25, "b": 0.75})
    assert train(config_of(schedule(two, first, later), "max_epochs=0.01"), VAEStage, tmp_path / "alone") == 0
    assert "12 steps go through a " in capsys.readouterr().err
    overrides = ("total_steps=8", "optimizer.decay_steps=12", "max_epochs=0")
    assert train(config_of(schedule(two, first), *overrides), VAEStage, tmp_path / "run") == 0
    assert "steps go through" not in capsys.readouterr().err
    swapped = (0, {"b": 0.25, "a": 0.75})  # has other rows, where two sources are due
    for wrong in (((0, {"a": 0.5, "b": 0.5}), later), (swapped, later), ((0, {"a": 1}),), (first, (7, later[1]))):
        config = config_of(schedule(two, *wrong), "optimizer.decay_steps=12")
        message = error_of_training(config, tmp_path / "run")
        assert "facts.records was" in message
    config = config_of(schedule(two, first, later), "optimizer.decay_steps=12")
    assert train(config, VAEStage, tmp_path / "run") == 0
    lines = [{step["step"]: step for step in tiny_runs.read_metrics(tmp_path / run) if step["kind"] == "train"}
             for run in ("alone", "run")]  # fmt: skip
    assert lines[0] == lines[1]
    kept = json.loads((tmp_path / "run" / "config.json").read_text())["facts"]["records"]
    assert [step for step, _ in kept] == [0, 8]
    assert met(kept, 8) == kept[:1]
    assert [weight for _, weight in kept[1][1]] == [1, 3]


def test_an_evaluation_is_of_each_source_and_of_the_mixture(two, tmp_path):
    assert train(config_of(schedule(two, (0, {"a": 0.75, "b": 0.25}))), VAEStage, tmp_path / "run") == 0
    assert train(config_of(str(two["a"])), VAEStage, tmp_path / "single") == 0
    mixed, single = ([line for line in tiny_runs.read_metrics(epath.Path(tmp_path) / run) if line["kind"] == "eval"]
                     for run in ("run", "single"))  # fmt: skip
    assert {"loss", "loss_a", "loss_b", "accuracy_a"} <= mixed[0].keys()
    assert not {"loss_a"} & single[0].keys()
    for line in mixed:
        assert line["loss"] == pytest.approx(0.75 * line["loss_a"] + 0.25 * line["loss_b"], rel=1e-5)
        assert line["loss_a"] != line["loss_b"]  # each row has noise of its own
