"""Text to records: what comes out against the text that went in."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from corpora import DOCUMENTS, LONG, contents, write_corpus

from colajax.data import part_records
from colajax.data.packing import SECTION_BYTES, sections
from colajax.data.prepare import prepare
from colajax.data.records import Records, digest, read_metadata
from colajax.data.tokenizer import load_tokenizer
from colajax.errors import UserError

ROOT = Path(__file__).parent.parent


def _pieces(rows, tokenizer):
    """The text of every whole document or piece in the rows: what stands between end-of-text tokens."""
    texts = []
    for row in rows:
        ids = row.tolist()
        assert tokenizer.eos_id in ids or tokenizer.pad_id not in ids
        while tokenizer.eos_id in ids:
            end = ids.index(tokenizer.eos_id)
            texts.append(tokenizer.decode(ids[:end]))
            ids = ids[end + 1 :]
        assert set(ids) <= {tokenizer.pad_id} or tokenizer.pad_id not in ids
    return texts


def test_short_documents_come_back_word_for_word_each_in_one_split(corpus, tokenizer, tmp_path):
    metadata = prepare([corpus / "a.jsonl"], tokenizer.path, tmp_path / "r", 512, validation_fraction=0.2)
    found = {name: _pieces(Records.open(tmp_path / "r", name), tokenizer) for name in ("train", "validation")}
    assert sorted(found["train"] + found["validation"]) == sorted(DOCUMENTS)
    for name, split in metadata["splits"].items():
        assert split["documents"] == len(found[name])
        assert split["tokens"] == sum(len(tokenizer.encode(text)) + 1 for text in found[name])
        assert split["padding_share"] == pytest.approx(1 - split["tokens"] / (split["rows"] * 512))
        assert split["cut_share"] == 0
    assert 0.1 < len(found["validation"]) / len(DOCUMENTS) < 0.3

    # The rule, written out.
    assert sorted(found["validation"]) == sorted(text for text in DOCUMENTS if _held_out(text, 0.2))


def _held_out(text, fraction, seed=0):
    number = int(hashlib.blake2b(f"{seed}/{text}".encode(), digest_size=8).hexdigest(), 16)
    return number < fraction * 2**64


def test_copies_of_a_document_go_to_one_split_wherever_they_lie(tokenizer, tmp_path):
    texts = [*DOCUMENTS[:40], "another beginning", *DOCUMENTS[::-1]]
    prepare([write_corpus(tmp_path / "a.jsonl", texts)], tokenizer.path, tmp_path / "r", 512, validation_fraction=0.3)
    train, validation = (_pieces(Records.open(tmp_path / "r", name), tokenizer) for name in ("train", "validation"))
    assert len(train) + len(validation) == len(texts)
    assert not set(train) & set(validation)
    assert read_metadata(tmp_path / "r")["divided_by"] == "document"


def test_a_long_document_stays_whole_and_has_one_end_of_text(tokenizer, tmp_path):
    """Tokenised in sections, by several processes, it is packed as one; all of it is in one split."""
    texts = [LONG, *DOCUMENTS[:30], LONG + " And more."]
    assert len(list(sections(LONG))) > 5
    metadata = prepare([write_corpus(tmp_path / "a.jsonl", texts)], tokenizer.path, tmp_path / "r", 64, workers=2,
                       validation_fraction=0.5, seed=1)  # fmt: skip
    rows = {name: list(Records.open(tmp_path / "r", name)) for name in ("train", "validation")}
    for name, expected in (("train", False), ("validation", True)):
        members = [text for text in texts if _held_out(text, 0.5, seed=1) == expected]
        assert sum((row == tokenizer.eos_id).sum() for row in rows[name]) == len(members)
        assert metadata["splits"][name]["documents"] == len(members)
        full = {tuple(row.tolist()) for row in rows[name]}
        for text in members:
            ids = [*(i for section in sections(text) for i in tokenizer.encode(section)), tokenizer.eos_id]
            assert all(tuple(ids[i : i + 64]) in full for i in range(0, len(ids) - 63, 64))


def test_where_no_document_is_held_out_by_its_hash_the_one_of_middle_length_is(tokenizer, tmp_path, capsys):
    texts = ["and she was cold " * n for n in (40, 1, 9)]
    path = write_corpus(tmp_path / "a.jsonl", texts)
    for fraction, alone, others in ((1e-9, "validation", "train"), (1 - 1e-9, "train", "validation")):
        out = tmp_path / alone
        prepare([path], tokenizer.path, out, 512, validation_fraction=fraction)
        assert _pieces(Records.open(out, alone), tokenizer) == [texts[2]]
        assert sorted(_pieces(Records.open(out, others), tokenizer)) == sorted(texts[:2])
        assert f"no document fell to {alone} by its hash: the one of middle length does\n" in capsys.readouterr().out


@pytest.mark.parametrize("copies", [1, 2])
def test_a_single_document_is_divided_in_stretches_that_do_not_end_the_text(tokenizer, tmp_path, capsys, copies):
    for i in range(copies):
        (tmp_path / f"{i}.txt").write_text(LONG)
    metadata = prepare([tmp_path], tokenizer.path, tmp_path / "r", 64, validation_fraction=0.3, seed=0)
    assert "a single document: held-out stretches of it border on training text\n" in capsys.readouterr().out
    assert metadata["divided_by"] == "section"
    rows = {name: list(Records.open(tmp_path / "r", name)) for name in ("train", "validation")}
    runs, last = {"train": [], "validation": []}, None
    for section in sections(LONG):
        split = "validation" if _held_out(section, 0.3, seed=0) else "train"
        runs[split] += [[]] if split != last else []
        runs[split][-1] += tokenizer.encode(section)
        last = split
    runs[last][-1].append(tokenizer.eos_id)
    assert min(len(stretches) for stretches in runs.values()) > 1
    for name, expected in runs.items():  # a row is of one stretch alone, but where the text ends
        pieces = [run[i : i + 64] for run in expected for i in range(0, len(run), 64)]
        found = [row[row != tokenizer.pad_id].tolist() for row in rows[name]]
        ends = [row for row in found if tokenizer.eos_id in row]
        assert sum(row.count(tokenizer.eos_id) for row in ends) == (copies if name == last else 0)
        whole = [row for row in found if row not in ends]
        assert sorted(whole) == sorted(copies * [piece for piece in pieces if tokenizer.eos_id not in piece])
        assert metadata["splits"][name]["tokens"] == sum(map(len, found)) == copies * sum(map(len, expected))
        cut = copies * sum(len(run) - 64 for run in expected)
        assert metadata["splits"][name]["cut_share"] == pytest.approx(cut / metadata["splits"][name]["tokens"])
        assert metadata["splits"][name]["documents"] == copies


def test_records_of_format_1_are_read_keep_their_digest_and_are_not_made_again(corpus, tokenizer, tmp_path, capsys):
    old = {
        "format_version": 1, "sequence_length": 64,
        "tokenizer": {"digest": "ab" * 32, "file": "tokenizer.model", "vocab_size": 350, "pad_id": 0, "eos_id": 1},
        "settings": {"validation_fraction": 0.02, "text_field": "text", "seed": 0, "rows_per_shard": 65536},
        "source": [{"file": "a.jsonl", "bytes": 3, "sha256": "cd" * 32}],
    }  # fmt: skip
    assert (
        digest(old) == "52045784b450cbb1aa1cd1feab5d893396be7f2f9c17503e571ebb8fb7729777"
    )  # by the code of that format
    assert digest(old | {"format_version": 2}) != digest(old)

    new, folder = tmp_path / "new", tmp_path / "old"
    prepare([corpus], tokenizer.path, new, 64)
    shutil.copytree(new, folder)
    metadata = read_metadata(folder) | {"format_version": 1}
    del metadata["divided_by"], metadata["inputs"], metadata["left_out"]
    contents = [(file, file.read_bytes()) for file in sorted(corpus.iterdir())]
    metadata["source"] = [{"file": str(file), "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                          for file, content in contents]  # fmt: skip
    (folder / "metadata.json").write_text(json.dumps(metadata))
    for split in ("train", "validation"):
        np.testing.assert_array_equal(list(Records.open(folder, split)), list(Records.open(new, split)))
    assert Records.open(folder, "train").tokenizer().digest == tokenizer.digest
    assert prepare([corpus], tokenizer.path, folder, 64) == metadata
    assert "up to date (of format 1, which is read; remove it to have format 3" in capsys.readouterr().out
    with pytest.raises(UserError, match="already there with another seed"):
        prepare([corpus], tokenizer.path, folder, 64, seed=1)


def test_shards_and_windows_lose_nothing(corpus, tokenizer, tmp_path, monkeypatch):
    settings = {"validation_fraction": 0.1, "rows_per_shard": 100}
    prepare([corpus], tokenizer.path, tmp_path / "one_window", 64, **settings)
    monkeypatch.setattr(part_records, "WINDOW_TOKENS", 5000)
    metadata = prepare([corpus], tokenizer.path, tmp_path / "one", 64, **settings)
    train = metadata["splits"]["train"]
    assert [shard["rows"] for shard in train["shards"][:-1]] == [100] * (len(train["shards"]) - 1)
    assert [shard["file"] for shard in train["shards"]] == [
        f"train-{i:05d}-of-{len(train['shards']):05d}.array_record" for i in range(len(train["shards"]))
    ]
    assert len(train["shards"]) > 2

    for split in ("train", "validation"):  # packed in other rows, but the same tokens as often
        ids = [np.concatenate(list(Records.open(tmp_path / name, split))) for name in ("one", "one_window")]
        counts = [np.bincount(split_ids[split_ids != tokenizer.pad_id], minlength=350) for split_ids in ids]
        np.testing.assert_array_equal(*counts)
        assert counts[0].sum() == metadata["splits"][split]["tokens"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "one_window"]


def test_preparing_needs_no_jax():
    code = "import sys, colajax.data.prepare; print([m for m in ('jax', 'grain', 'flax') if m in sys.modules])"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"


def test_an_existing_folder_is_kept_if_it_is_the_same_and_refused_otherwise(corpus, tokenizer, tmp_path, capsys):
    source = tmp_path / "a.jsonl"
    source.write_bytes((corpus / "a.jsonl").read_bytes())
    out = tmp_path / "r"
    first = prepare([source], tokenizer.path, out, 64, validation_fraction=0.1)
    before = contents(out)
    source.rename(tmp_path / "moved.jsonl")  # the same text under another name
    source = tmp_path / "moved.jsonl"
    again = prepare([source], tokenizer.path, out, 64, validation_fraction=0.1, workers=2)
    assert again == first
    assert "up to date" in capsys.readouterr().out
    for change, key in (
        ({"sequence_length": 32}, r"sequence_length \(64, now 32\)"),
        ({"validation_fraction": 0.2}, "validation_fraction"),
        ({"seed": 1}, "seed"),
        ({"inputs": [corpus]}, "source"),
    ):
        arguments = {"inputs": [source], "sequence_length": 64, "validation_fraction": 0.1} | change
        with pytest.raises(UserError, match=f"already there with another {key}"):
            prepare(tokenizer_path=tokenizer.path, out=out, **arguments)
    assert contents(out) == before
    (out / "train-00000-of-00001.array_record").unlink()
    with pytest.raises(UserError, match=r"train-00000-of-00001\.array_record: missing"):
        prepare([source], tokenizer.path, out, 64, validation_fraction=0.1)


def test_bad_settings_and_an_empty_split_are_refused_without_a_trace(corpus, tokenizer, tmp_path):
    inputs, out, short = [corpus / "a.jsonl"], tmp_path / "r", tmp_path / "short.txt"
    short.write_text("One section alone.")
    for arguments, message in (
        ({"sequence_length": 1}, "sequence_length 1"),
        ({"sequence_length": 10**15}, "sequence_length 1000000000000000: expected 2 to 1048576"),
        ({"validation_fraction": 0.0}, "validation_fraction 0.0"),
        ({"inputs": [short]}, "nothing fell to validation: the text is too short to be divided"),
        ({"inputs": [short], "validation_fraction": 1 - 1e-9}, "nothing fell to train: the text is too short"),
        ({"workers": 0}, "workers 0"),
        ({"rows_per_shard": 0}, "rows_per_shard 0"),
        ({"inputs": []}, "nothing fell to train"),
        ({"out": corpus / "b.txt" / "r"}, "cannot be written"),
    ):
        arguments = {"inputs": inputs, "out": out, "sequence_length": 64} | arguments
        with pytest.raises(UserError, match=message):
            prepare(tokenizer_path=tokenizer.path, **arguments)
    no_special = tmp_path / "tokenizer.json"
    no_special.write_text(
        '{"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}'
    )
    with pytest.raises(UserError, match=r"tokenizer\.json: has no padding token"):
        prepare(inputs, no_special, out, 64)
    assert sorted(tmp_path.iterdir()) == [short, no_special]


def test_a_long_document_keeps_its_text_with_a_dummy_space_too(tmp_path):
    """LLaMA's tokenizer: in sections, each would begin with a space of its own."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(DOCUMENTS), model_writer=model, model_type="bpe", vocab_size=400, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, hard_vocab_limit=False, minloglevel=3,
        pad_id=3, unk_id=0, bos_id=1, eos_id=2,
    )  # fmt: skip
    (tmp_path / "t.model").write_bytes(model.getvalue())
    texts = [LONG, *DOCUMENTS]
    out = tmp_path / "r"
    prepare([write_corpus(tmp_path / "a.jsonl", texts)], tmp_path / "t.model", out, 60_000, workers=2, seed=3)
    tokenizer = load_tokenizer(tmp_path / "t.model")
    found = [text for name in ("train", "validation") for text in _pieces(Records.open(out, name), tokenizer)]
    assert len(LONG) > 5 * SECTION_BYTES
    assert sorted(found) == sorted(texts)
