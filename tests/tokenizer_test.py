"""Tokenizers against exact round trips, the library's own answers, and files that are not what they say."""

import hashlib
import io
import json

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from colajax.data.tokenizer import load_tokenizer, train_sentencepiece
from colajax.errors import UserError

TEXTS = [
    "The quick brown fox jumps over the lazy dog.\n\nShe sells sea shells; he said:\n    so be it.\n" * 20,
    "Größe, naïve, 日本語のテキスト, emoji 😀. <pad> and </s> are words here.\n" * 5,
]
SPECIAL_WORDS = [
    "<pad>",
    "</s>",
    "<unk>",
    "<0x0A>",
    "<|endoftext|>",
    "<|pad|>",
    "[PAD]",
    "\u2581",
    "\u2585",
    " \u2047 ",
]
SPACES = [" ", "   ", "\n", "\r\n", "\t", "\n\n\n", "\0", "\u00a0", "\ufeff", "\u2028"]
any_text = st.text() | st.lists(st.sampled_from(SPECIAL_WORDS + SPACES + ["The", "fox", "日本"])).map("".join)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train_sentencepiece(TEXTS, tmp_path_factory.mktemp("model") / "t.model", 450)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    """A tokenizer.json like OLMo 2's: byte-level BPE with special tokens for the end of text and for padding."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=350, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_end|>", "<|pad|>"])
    tokenizer.enable_truncation(4)
    path = tmp_path_factory.mktemp("json") / "tokenizer.json"
    tokenizer.save(str(path))
    return load_tokenizer(path)


@given(text=any_text)
@example(text="".join(SPECIAL_WORDS))
@example(text=" \u2581 a\u2581\u2581b \u2581")
@settings(max_examples=300)
def test_round_trip_is_exact_and_without_special_tokens(trained, byte_level, text):
    for tokenizer in (trained, byte_level):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not {tokenizer.pad_id, tokenizer.eos_id} & set(ids)
        assert all(0 <= i < tokenizer.vocab_size for i in ids)


def test_special_tokens_are_where_they_belong_and_decode_to_nothing(trained, byte_level):
    assert (trained.pad_id, trained.eos_id, trained.vocab_size) == (0, 1, 450)
    assert (byte_level.pad_id, byte_level.eos_id, byte_level.vocab_size) == (352, 350, 353)
    for tokenizer in (trained, byte_level):
        assert (
            tokenizer.decode([tokenizer.pad_id, *tokenizer.encode("fox"), tokenizer.eos_id, tokenizer.pad_id]) == "fox"
        )
        assert tokenizer.digest == hashlib.sha256(tokenizer.path.read_bytes()).hexdigest()


def test_a_continuation_keeps_its_leading_space_and_broken_bytes_are_marked(trained, byte_level):
    for tokenizer in (trained, byte_level):
        ids = tokenizer.encode("lazy dog 日")
        start = next(i for i in range(len(ids)) if tokenizer.decode(ids[i:]).startswith(" dog"))
        assert tokenizer.decode(np.array(ids[start:])) == " dog 日"
        assert set(tokenizer.decode(tokenizer.encode("😁")[:-1])) == {"\ufffd"}


def test_training_learns_pieces_is_deterministic_and_reports_a_smaller_vocabulary(trained, tmp_path):
    words = train_sentencepiece(TEXTS, tmp_path / "again.model", 450)
    assert words.digest == trained.digest
    assert len(trained.encode(TEXTS[0])) < len(TEXTS[0]) / 3
    assert any("\n\n" in trained.decode([i]) for i in range(trained.vocab_size))  # newlines reach the trainer
    small = train_sentencepiece(["ab ab"], tmp_path / "small.model", 30000)
    assert 256 + 3 + len("ab ") <= small.vocab_size < 300
    assert small.decode(small.encode("ab 日本")) == "ab 日本"
    long = train_sentencepiece(
        ["x" * 100_000, " y" * 100_000], tmp_path / "long.model", 400
    )  # longer than its sentences
    assert long.decode(long.encode("xxx y")) == "xxx y"


def test_training_refuses_what_cannot_work_and_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match=r"vocab_size 100: this text needs at least \d+"):
        train_sentencepiece(TEXTS, tmp_path / "t.model", 100)
    for size in (0, 10**14):
        with pytest.raises(UserError, match=f"vocab_size {size}: expected"):
            train_sentencepiece(TEXTS, tmp_path / "t.model", size)
    with pytest.raises(UserError, match="no text"):
        train_sentencepiece(["", " \n"], tmp_path / "t.model", 300)
    with pytest.raises(UserError, match=r"must end in \.model"):
        train_sentencepiece(TEXTS, tmp_path / "t.spm", 400)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        train_sentencepiece(TEXTS, tmp_path / "file" / "t.model", 400)


def test_a_sentencepiece_model_of_another_make_encodes_as_its_library_does(tmp_path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS[0].splitlines()), model_writer=model, vocab_size=40, minloglevel=2
    )
    (tmp_path / "other.model").write_bytes(model.getvalue())
    other = load_tokenizer(tmp_path / "other.model")
    library = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    assert (other.pad_id, other.eos_id, other.vocab_size) == (None, 2, 40)
    for text in ("the lazy fox", "a\u2581b", "日"):
        assert other.encode(text) == library.encode(text)
        assert other.decode(other.encode(text)) == library.decode(library.encode(text))


def test_a_word_vocabulary_with_pad_among_its_words_never_yields_it(tmp_path):
    words = {"<unk>": 0, "fox": 1, "<pad>": 2, "dog": 7}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert (loaded.pad_id, loaded.eos_id, loaded.vocab_size) == (2, None, 8)
    assert loaded.encode("fox <pad> dog cat") == [1, 7, 0]
    assert loaded.decode([1, 2, 7]) == "fox dog"
    assert loaded.lost_words == ["<pad>"]


@given(text=any_text)
@example("a<|endoftext|>b <|pad|>")
def test_special_tokens_that_a_file_lists_as_ordinary_are_no_less_special(byte_level, nonspecial, text):
    ids = nonspecial.encode(text)
    assert ids == byte_level.encode(text)
    assert nonspecial.decode(ids) == text
    assert not {nonspecial.pad_id, nonspecial.eos_id} & set(ids)
    assert nonspecial.decode([*ids, nonspecial.eos_id, nonspecial.pad_id]) == text
    assert nonspecial.lost_words == byte_level.lost_words == []


@pytest.fixture(scope="module")
def nonspecial(byte_level, tmp_path_factory):
    file = json.loads(byte_level.path.read_text())
    for token in file["added_tokens"]:
        token["special"] = token["content"] == "<|im_end|>"
    path = tmp_path_factory.mktemp("nonspecial") / "tokenizer.json"
    path.write_text(json.dumps(file))
    return load_tokenizer(path)


def test_a_dummy_space_is_not_doubled_where_a_text_is_encoded_in_sections(trained, byte_level, tmp_path):
    assert trained.joins
    assert byte_level.joins
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS[0].splitlines()), model_writer=model, vocab_size=40, minloglevel=2
    )
    (tmp_path / "other.model").write_bytes(model.getvalue())
    assert not load_tokenizer(tmp_path / "other.model").joins


def test_files_that_are_no_tokenizer_are_named(tmp_path, trained):
    files = {
        "empty.model": b"",
        "cut.model": trained.path.read_bytes()[:500],
        "json.model": b'{"a": 1}',
        "empty.json": b"",
        "other.json": b'{"a": 1}',
        "model.json": trained.path.read_bytes(),
        "t.txt": b"hello",
    }
    for name, blob in files.items():
        (tmp_path / name).write_bytes(blob)
        with pytest.raises(UserError, match=name) as caught:
            load_tokenizer(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no such tokenizer file"):
        load_tokenizer(tmp_path / "missing.model")
