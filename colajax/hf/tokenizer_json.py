"""SentencePiece models as Hugging Face tokenizer.json files that give the same ids.

What is written stores a piece's space as a space, not as U+2581: the text then needs no normaliser, and a U+2581 of
the text itself is spelt in bytes, as `colajax.data.tokenizer` does it. Ids become the same text too, but for bytes that
make no character: SentencePiece saves the characters beside them, `tokenizers` gives U+FFFD for the whole run of bytes.
"""

import itertools

import tokenizers
from sentencepiece import sentencepiece_model_pb2

from colajax.data.tokenizer import JsonTokenizer, SentencePieceTokenizer, Tokenizer
from colajax.errors import UserError

_SPACE = "\u2581"
_KINDS = sentencepiece_model_pb2.ModelProto.SentencePiece
# Texts on which every conversion is checked, beside those made from its own pieces.
_TEXTS = (
    "", " ", "  ", "   \n\n\t  ", " a", "a ", "a  b   c", "\u2581", "a\u2581 b", "naïve café, 東京 🙂 Ωμέγα",
    "\u0000\u200b\ufeff", "<pad></s><unk><0x41>", "e\u0301 é \u00a0\u3000", "aaaaaaaaaaa", "-----------",
)  # fmt: skip


def tokenizer_json(tokenizer: Tokenizer) -> str:
    """The tokenizer.json of a run's tokenizer. Raises UserError naming what cannot be represented in one."""
    if isinstance(tokenizer, JsonTokenizer):
        return tokenizer.path.read_text()
    model = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.path.read_bytes())
    _check_representable(model, tokenizer.path)
    written = _convert(model)
    _check_same_ids(tokenizer, JsonTokenizer(written.encode()), model)
    return written


def _check_representable(model, path) -> None:
    """Only BPE on the text as it is has an equivalent; SentencePiece's own normalisation has none."""
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    unknown = [p.piece for p in model.pieces if p.type == _KINDS.Type.UNKNOWN]
    foreign = [p.piece for p in model.pieces if p.type in (_KINDS.Type.USER_DEFINED, _KINDS.Type.UNUSED)]
    for holds, what in (
        (trainer.model_type == trainer.BPE, "a model_type other than bpe"),
        (not normalizer.precompiled_charsmap, f"the normalization rule {normalizer.name!r}"),
        (not normalizer.add_dummy_prefix, "add_dummy_prefix"),
        (not normalizer.remove_extra_whitespaces, "remove_extra_whitespaces"),
        (normalizer.escape_whitespaces, "escape_whitespaces off"),
        (not trainer.treat_whitespace_as_suffix, "treat_whitespace_as_suffix"),
        (not foreign, f"user-defined or unused pieces ({foreign[:1]})"),
        (trainer.byte_fallback and len(unknown) == 1, "no byte fallback"),
    ):  # fmt: skip
        if not holds:
            raise UserError(f"{path}: has {what}, which a tokenizer.json cannot represent; export stops")


def _convert(model) -> str:
    """BPE with byte fallback over the pieces; the merges that make a piece rank by the piece's score."""
    vocabulary = {piece.piece.replace(_SPACE, " "): i for i, piece in enumerate(model.pieces)}
    normal = {p.piece.replace(_SPACE, " "): p.score for p in model.pieces if p.type == _KINDS.Type.NORMAL}
    merges = []
    for piece in sorted(normal, key=normal.get, reverse=True):
        splits = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        merges += [split for split in splits if split[0] in normal and split[1] in normal]
    (unknown,) = (p.piece for p in model.pieces if p.type == _KINDS.Type.UNKNOWN)
    bpe = tokenizers.models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    result = tokenizers.Tokenizer(bpe)
    result.decoder = tokenizers.decoders.Sequence([tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()])
    return result.to_str(pretty=True)


def _check_same_ids(tokenizer: SentencePieceTokenizer, converted: JsonTokenizer, model) -> None:
    """Several merges may make one piece, and two such may compete for a character; here every one meets its like."""
    pieces = [p.piece.replace(_SPACE, " ") for p in model.pieces if p.type == _KINDS.Type.NORMAL]
    doubled = (piece + piece[cut:] for piece in pieces for cut in range(len(piece)))
    tripled = (piece[cut:] + piece + piece for piece in pieces for cut in range(len(piece)))
    for text in itertools.chain(_TEXTS, doubled, tripled):
        if tokenizer.encode(text) != converted.encode(text):
            raise UserError(f"{tokenizer.path}: a tokenizer.json of it would encode {text!r} otherwise; export stops")


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
