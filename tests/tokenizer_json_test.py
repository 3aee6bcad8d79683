"""SentencePiece tokenizers as tokenizer.json: the same ids and texts, or a refusal."""

import io
import json

import hypothesis
import hypothesis.strategies as st
import pytest
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2

from colajax.data.tokenizer import load_tokenizer
from colajax.errors import UserError
from colajax.hf import tokenizer_json
from colajax.stories.grammar import stories

WORDS = st.sampled_from(
    [" ", "  ", "\n", "\t", "the", " the", "Anna", "and", "\u2581", "é", "e\u0301", "東", "🙂", ".", "</s>"]
)
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.text(" \t\n\r\u00a0\u2581\u3000ab"),
    st.lists(WORDS).map("".join),
    st.text("ab ", max_size=40),
)


@pytest.fixture(scope="module")
def both(records, tmp_path_factory):
    ours = load_tokenizer(records / "tokenizer.model")
    path = tmp_path_factory.mktemp("json") / "tokenizer.json"
    path.write_text(tokenizer_json.tokenizer_json(ours))
    return ours, load_tokenizer(path), tokenizers.Tokenizer.from_file(str(path))


@hypothesis.given(TEXTS)
def test_the_same_ids_and_back(both, text):
    ours, converted, library = both
    ids = ours.encode(text)
    assert library.encode(text).ids == ids
    assert converted.encode(text) == ids
    assert library.decode(ids) == text


@hypothesis.given(st.data())
def test_texts_of_its_own_pieces(both, data):
    ours, _, library = both
    pieces = data.draw(st.lists(st.integers(3 + 256, ours.vocab_size - 1), max_size=12))
    text = ours.decode(pieces)
    assert library.encode(text).ids == ours.encode(text)
    assert library.decode(pieces) == text


def test_special_tokens_keep_their_ids(both):
    ours, converted, _ = both
    assert (converted.pad_id, converted.eos_id, converted.vocab_size) == (ours.pad_id, ours.eos_id, ours.vocab_size)


def test_a_json_is_handed_on_as_it_is(both):
    assert tokenizer_json.tokenizer_json(both[1]) == both[1].path.read_text()


def trained(path, **options):
    model = io.BytesIO()
    settings = {
        "model_type": "bpe", "vocab_size": 400, "byte_fallback": True, "normalization_rule_name": "identity",
        "add_dummy_prefix": False, "remove_extra_whitespaces": False, "hard_vocab_limit": False, "minloglevel": 3,
    }  # fmt: skip
    texts = iter(stories(0, 50))
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=texts, model_writer=model, **settings | options)
    path.write_bytes(model.getvalue())
    return load_tokenizer(path)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"model_type": "unigram"}, "model_type"),
        ({"normalization_rule_name": "nmt_nfkc"}, "nmt_nfkc"),
        ({"add_dummy_prefix": True}, "add_dummy_prefix"),
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces"),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix"),
        ({"user_defined_symbols": ["<x>"]}, "<x>"),
        ({"byte_fallback": False}, "byte fallback"),
    ],
)
def test_what_has_no_equivalent_is_refused_by_name(options, what, tmp_path):
    with pytest.raises(UserError, match=what) as error:
        tokenizer_json.tokenizer_json(trained(tmp_path / "tokenizer.model", **options))
    assert str(tmp_path / "tokenizer.model") in str(error.value)


def test_a_conversion_that_gives_other_ids_is_not_handed_out(tmp_path, monkeypatch):
    tokenizer = trained(tmp_path / "tokenizer.model")
    model = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.path.read_bytes())
    converted = json.loads(tokenizer_json._convert(model))
    del converted["model"]["merges"][-1]
    monkeypatch.setattr(tokenizer_json, "_convert", lambda model: json.dumps(converted))
    with pytest.raises(UserError, match="otherwise"):
        tokenizer_json.tokenizer_json(tokenizer)
