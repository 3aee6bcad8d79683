"""Tokenizers: one interface over SentencePiece `.model` files and Hugging Face `tokenizer.json` files.

Text never becomes a special token: a "<pad>" or "<|endoftext|>" written in a text is encoded like any other characters.
"""

import functools
import hashlib
import io
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import sentencepiece
import tokenizers
from etils import epath

from colajax.errors import UserError
from colajax.files import write_whole

PAD_NAMES = ("<|pad|>", "<pad>", "[PAD]")
LARGEST_VOCABULARY = 2**24
EOS_NAMES = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>")


class Tokenizer(ABC):
    """Text to token ids and back.

    Attributes:
        path: the file it was read from.
        digest: sha256 of that file's bytes, in hex.
        vocab_size: the largest id + 1.
        pad_id, eos_id: the padding and the end-of-text id; None where the file has none.
        lost_words: names of these two that the file also holds as ordinary words: `encode` leaves them out of a text.
    """

    path: epath.Path
    digest: str
    vocab_size: int
    pad_id: int | None
    eos_id: int | None
    lost_words: Sequence[str] = ()

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of a text, no special token among them."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids, special tokens dropped, U+FFFD where bytes do not make a character.

        Of ids that continue a text, a tokenizer that puts a dummy space before every text (LLaMA 2) drops the first
        space here: see `decode_continuation`.
        """

    def decode_continuation(self, ids: Iterable[int]) -> str:
        """The text of ids that continue another one, with the space that it may begin with."""
        before = self.encode("a")
        return self.decode([*before, *ids]).removeprefix(self.decode(before))

    @functools.cached_property
    def joins(self) -> bool:
        """Whether a text may be encoded in sections: the ids of its sections, one after the other, are the text.

        Not so where a tokenizer puts a dummy space before every text, or drops the whitespace around one.
        """
        sections = ("a\n\n", "a\n", "a ", "a")
        return all(self.decode(self.encode(section) + self.encode("b")) == section + "b" for section in sections)


class SentencePieceTokenizer(Tokenizer):
    def __init__(self, blob: bytes):
        self._processor = sentencepiece.SentencePieceProcessor()
        self._processor.LoadFromSerializedProto(blob)
        self.vocab_size = self._processor.vocab_size()
        self.pad_id = _none_if_negative(self._processor.pad_id())
        self.eos_id = _none_if_negative(self._processor.eos_id())
        self._lower_block = self._byte_pieces("\u2581")

    def _byte_pieces(self, character: str) -> list[int] | None:
        """The byte pieces of a character; None if the model has no byte pieces or does not keep a text as it is."""
        ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in character.encode()]
        keeps = self._processor.decode(self._processor.encode(" a  a ")) == " a  a "
        dummy_space = self._processor.encode("a", out_type=str)[0].startswith("\u2581")
        return ids if keeps and not dummy_space and all(map(self._processor.is_byte, ids)) else None

    def encode(self, text: str) -> list[int]:
        if self._lower_block is None:
            return self._processor.encode(text)
        # SentencePiece writes a space as U+2581, so a U+2581 of the text itself would come back as a space.
        first, *others = text.split("\u2581")
        ids = self._processor.encode(first)
        for part in others:
            ids += self._lower_block + self._processor.encode(part)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        return self._processor.decode([int(i) for i in ids])


class JsonTokenizer(Tokenizer):
    def __init__(self, blob: bytes):
        self._tokenizer = tokenizers.Tokenizer.from_str(blob.decode())
        self.pad_id = self._first_id(PAD_NAMES)
        self.eos_id = self._first_id(EOS_NAMES)
        file = json.loads(blob)
        for token in file["added_tokens"]:  # some files list them as ordinary: their names would then be found in texts
            token["special"] |= token["id"] in (self.pad_id, self.eos_id)
        self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(file))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # that is: as ordinary text
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.lost_words = [
            self._tokenizer.id_to_token(i)
            for i in (self.pad_id, self.eos_id)
            if i is not None
            and i in self._tokenizer.encode(self._tokenizer.id_to_token(i), add_special_tokens=False).ids
        ]

    def _first_id(self, names: Iterable[str]) -> int | None:
        ids = map(self._tokenizer.token_to_id, names)
        return next((i for i in ids if i is not None), None)

    def encode(self, text: str) -> list[int]:
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return self._without_special(ids)

    def decode(self, ids: Iterable[int]) -> str:
        return self._tokenizer.decode(self._without_special(int(i) for i in ids), skip_special_tokens=True)

    def _without_special(self, ids: Iterable[int]) -> list[int]:
        # A file may hold "<pad>" as an ordinary word, which the library then neither skips nor avoids.
        return [i for i in ids if i != self.pad_id and i != self.eos_id]


def _none_if_negative(token_id: int) -> int | None:
    return None if token_id < 0 else token_id


def load_tokenizer(path: epath.PathLike) -> Tokenizer:
    """Reads `.model` as SentencePiece and `.json` as a Hugging Face tokenizer.json. UserError if it is neither."""
    path = epath.Path(path)
    kind = {".model": SentencePieceTokenizer, ".json": JsonTokenizer}.get(path.suffix)
    if kind is None:
        raise UserError(f"{path}: expected a SentencePiece .model or a Hugging Face tokenizer.json")
    if not path.is_file():
        raise UserError(f"{path}: no such tokenizer file")
    try:
        blob = path.read_bytes()
        tokenizer = kind(blob)
    except Exception as error:  # both libraries raise bare Exception or RuntimeError
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a readable {path.suffix} tokenizer ({reason})") from error
    tokenizer.path, tokenizer.digest = path, hashlib.sha256(blob).hexdigest()
    return tokenizer


def pad_id_of(tokenizer: Tokenizer, vocab_size: int) -> int:
    """The padding id: the tokenizer's or, where it has none, the last of the model's vocabulary."""
    return vocab_size - 1 if tokenizer.pad_id is None else tokenizer.pad_id


def train_sentencepiece(texts: Iterable[str], path: epath.PathLike, vocab_size: int) -> Tokenizer:
    """Trains a BPE tokenizer with byte fallback, writes it to `path` (.model) and loads it.

    decode(encode(x)) == x for every text x: nothing is normalised, spaces and newlines are kept, rare characters are
    spelt in bytes, and no dummy space is put before a text, since a row may begin anywhere in a document. So a word at
    the very start of a text and the same word after a space are different tokens. Pad is 0, end of text 1, unknown 2
    (never used).

    Args:
        texts: held in memory while training: give a sample of a large corpus, some 100 MB are enough.
        vocab_size: an upper bound, 256 bytes and 3 special tokens included. A text that supports fewer pieces gives
            fewer: see `.vocab_size` of the result. The same texts and size give the same file.
    """
    path = epath.Path(path)
    if path.suffix != ".model":
        raise UserError(f"{path}: a SentencePiece tokenizer's name must end in .model")
    if not 1 <= vocab_size <= LARGEST_VOCABULARY:
        raise UserError(f"vocab_size {vocab_size}: expected the 259 of bytes and specials, up to {LARGEST_VOCABULARY}")
    # The trainer takes sentences of at most 4192 bytes; a cut before a space costs no word.
    sentences = [sentence for text in texts for sentence in re.findall(r"(?s).{1,1000}(?=\s|$)|.{1,1000}", text)]
    if not any(sentence.strip() for sentence in sentences):
        raise UserError("no text to train a tokenizer on")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            byte_fallback=True,
            character_coverage=0.9999,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            unk_surface="",
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            num_threads=1,
            minloglevel=3,
        )
    except RuntimeError as error:
        if too_small := re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error)):
            raise UserError(f"vocab_size {vocab_size}: this text needs at least {too_small[1]}") from error
        raise
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, model.getvalue())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error}); name another file") from error
    return load_tokenizer(path)
