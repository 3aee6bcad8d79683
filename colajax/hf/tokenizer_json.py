"""SentencePiece models as Hugging Face tokenizer.json files that give the same ids and the same text.

A model that keeps text as it is (what `train_sentencepiece` makes) is written with a piece's space as a space, not as
U+2581: the text then needs no normaliser, and a U+2581 of the text itself is spelt in bytes, as in `data.tokenizer`.
Others get a normaliser that does what theirs does: Unicode rules, whitespace, dummy space. Bytes that make no
character decode otherwise: SentencePiece saves the characters beside them, `tokenizers` gives U+FFFD for the whole run.

Two things are not the same to the last. Where two segmentations of a Unigram model score equal to the precision of a
float32, either may come. And by Unicode rules (nmt_nfkc) `tokenizers` replaces a character together with its accents,
so that a full-width letter, say, with a combining accent may come out without it.
"""

import itertools
import re

import numpy as np
import tokenizers

from colajax.data.tokenizer import JsonTokenizer, SentencePieceTokenizer, Tokenizer
from colajax.errors import UserError
from colajax.messages import message_class

_SPACE = "\u2581"
# Of sentencepiece_model.proto.
Model = message_class("""
Piece: string piece 1, float score 2, int32 type=1 3
Trainer: int32 model_type=1 3, bool treat_whitespace_as_suffix 24, bool byte_fallback 35, string unk_surface 44
Normalizer: bytes precompiled_charsmap 2, bool add_dummy_prefix=true 3, bool remove_extra_whitespaces=true 4, \
bool escape_whitespaces=true 5
Model: Piece* pieces 1, Trainer trainer_spec 2, Normalizer normalizer_spec 3
""", "Model")  # fmt: skip
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = range(1, 6)  # types of a piece
_UNIGRAM, _BPE = 1, 2  # types of a model
_SURFACE = " \u2047 "  # of an unknown piece where the model does not say
TIE = 1e-3  # logarithms of probabilities: SentencePiece adds them in float32, `tokenizers` in float64
# Texts on which every conversion is checked, beside those made from its own pieces.
_TEXTS = (
    "", " ", "  ", "   \n\n\t  ", " a", "a ", "a  b   c", "\u2581", "a\u2581 b", "naïve café, 東京 🙂 Ωμέγα",
    "\u0000\u200b\ufeff", "<pad></s><unk><0x41>", "e\u0301 é \u00a0\u3000", "aaaaaaaaaaa", "-----------",
)  # fmt: skip


def tokenizer_json(tokenizer: Tokenizer) -> str:
    """The tokenizer.json of a run's tokenizer. Raises UserError naming what cannot be represented in one."""
    if isinstance(tokenizer, JsonTokenizer):
        return tokenizer.path.read_text()
    model = Model.FromString(tokenizer.path.read_bytes())
    _check_representable(model, tokenizer.path)
    written = _convert(model, tokenizer.path)
    _check_same_ids(tokenizer, JsonTokenizer(written.encode()), model)
    return written


def _check_representable(model, path) -> None:
    """Of what SentencePiece can do, these have no equivalent."""
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    unknown = [p.piece for p in model.pieces if p.type == _UNKNOWN]
    foreign = [p.piece for p in model.pieces if p.type in (_USER_DEFINED, _UNUSED)]
    for holds, what in (
        (trainer.model_type in (_BPE, _UNIGRAM), "a model_type other than bpe and unigram"),
        (normalizer.escape_whitespaces, "escape_whitespaces off"),
        (not trainer.treat_whitespace_as_suffix, "treat_whitespace_as_suffix"),
        (not foreign, f"user-defined or unused pieces ({foreign[:1]})"),
        (len(unknown) == 1, f"{len(unknown)} unknown pieces"),
    ):
        if not holds:
            raise UserError(f"{path}: has {what}, which a tokenizer.json cannot represent; use another tokenizer")


def _convert(model, path) -> str:
    spec, trainer = model.normalizer_spec, model.trainer_spec
    steps = _normalizer_steps(model)
    space = _SPACE if steps else " "
    pieces = [(piece.piece.replace(_SPACE, space), piece.score) for piece in model.pieces]
    (unknown,) = (i for i, piece in enumerate(model.pieces) if piece.type == _UNKNOWN)
    if trainer.model_type == _BPE:
        result = tokenizers.Tokenizer(_bpe(model, pieces, unknown))
    else:
        result = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unknown, trainer.byte_fallback))
        result.pre_tokenizer = tokenizers.pre_tokenizers.Split(_cut_names(model, path), "merged_with_previous")
    decoder = [tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    if steps:
        result.normalizer = tokenizers.normalizers.Sequence(steps)
        others = [(p.piece, "") for p in model.pieces if p.type == _CONTROL]
        surface = trainer.unk_surface if trainer.HasField("unk_surface") else _SURFACE
        surfaces = [*others, (pieces[unknown][0], surface), (_SPACE, " ")]
        decoder = [tokenizers.decoders.Replace(piece, surface) for piece, surface in surfaces] + decoder
        if spec.add_dummy_prefix:
            decoder.append(tokenizers.decoders.Strip(" ", 1, 0))
    result.decoder = tokenizers.decoders.Sequence(decoder)
    return result.to_str(pretty=True)


def _normalizer_steps(model) -> list:
    """What SentencePiece does to a text, in its order; nothing where it keeps every text as it is."""
    spec = model.normalizer_spec
    changes = spec.precompiled_charsmap or spec.remove_extra_whitespaces or spec.add_dummy_prefix
    if model.trainer_spec.byte_fallback and not changes:
        return []
    replace, regex = tokenizers.normalizers.Replace, tokenizers.Regex
    steps = [tokenizers.normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:  # a U+2581 of the text is no space to it, but at the end
        steps += [replace(regex(r"\A +"), ""), replace(regex(" +"), " ")]
    steps.append(replace(" ", _SPACE))
    if spec.remove_extra_whitespaces:
        steps.append(replace(regex(f"{_SPACE}+\\z"), ""))
    return [*steps, tokenizers.normalizers.Prepend(_SPACE)] if spec.add_dummy_prefix else steps


def _bpe(model, pieces, unknown: int) -> tokenizers.models.BPE:
    """The merges that make a piece rank by the piece's score."""
    normal = {
        name: score
        for (name, score), piece in zip(pieces, model.pieces, strict=True)
        if piece.type == _NORMAL
    }
    merges = []
    for piece in sorted(normal, key=normal.get, reverse=True):
        splits = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        merges += [split for split in splits if split[0] in normal and split[1] in normal]
    vocabulary = {name: i for i, (name, _) in enumerate(pieces)}
    return tokenizers.models.BPE(
        vocabulary,
        merges,
        unk_token=pieces[unknown][0],
        fuse_unk=True,
        byte_fallback=model.trainer_spec.byte_fallback,
    )


def _cut_names(model, path) -> tokenizers.Regex:
    """Where to cut the names of special pieces, which `Unigram` would else find in a text that holds their characters.

    At a place that no ordinary piece spans a cut changes nothing, if one side is an ordinary character: two unknown
    ones beside each other become one unknown.
    """
    ordinary = {piece.piece for piece in model.pieces if piece.type == _NORMAL}
    spanned = {piece[i : i + 2] for piece in ordinary for i in range(len(piece) - 1)}
    patterns = []
    for name in (piece.piece for piece in model.pieces if piece.type != _NORMAL):
        places = (i for i in range(1, len(name)) if name[i - 1 : i + 1] not in spanned)
        cut = next((i for i in places if {name[i - 1], name[i]} & ordinary or model.trainer_spec.byte_fallback), None)
        if cut is None:
            raise UserError(
                f"{path}: a text that holds {name!r} would become that special piece in a tokenizer.json; "
                f"use another tokenizer"
            )
        patterns.append(f"{re.escape(name[:cut])}(?={re.escape(name[cut:])})")
    return tokenizers.Regex("|".join(patterns))


def _check_same_ids(tokenizer: SentencePieceTokenizer, converted: JsonTokenizer, model) -> None:
    """Several merges may make one piece, and two such may compete for a character; here every one meets its like."""
    pieces = [p.piece.replace(_SPACE, " ") for p in model.pieces if p.type == _NORMAL]
    doubled = (piece + piece[cut:] for piece in pieces for cut in range(len(piece)))
    tripled = (piece[cut:] + piece + piece for piece in pieces for cut in range(len(piece)))
    unigram = model.trainer_spec.model_type == _UNIGRAM
    scores = np.array([piece.score for piece in model.pieces])
    for text in itertools.chain(_TEXTS, doubled, tripled):
        ids, others = tokenizer.encode(text), converted.encode(text)
        tie = unigram and abs(scores[ids].sum() - scores[others].sum()) < TIE
        if not (ids == others or tie) or converted.decode(others) != tokenizer.decode(ids):
            raise UserError(
                f"{tokenizer.path}: a tokenizer.json of it would read {text!r} otherwise; use another tokenizer"
            )


def tokenizer_config(tokenizer: Tokenizer, written: str) -> dict:
    """tokenizer_config.json: what transformers needs to load the tokenizer.json; no text becomes a special token."""
    name_of = tokenizers.Tokenizer.from_str(written).id_to_token
    special = {"pad_token": tokenizer.pad_id, "eos_token": tokenizer.eos_id}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
        **{key: name_of(token) for key, token in special.items() if token is not None},
    }
