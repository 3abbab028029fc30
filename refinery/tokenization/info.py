"""The card beside every vocabulary: what it is, its hash, and probes that catch a library which encodes differently.

A tokenizer is a folder: ``tokenizer.json`` and ``tokenizer_config.json`` in the standard form that
``transformers.AutoTokenizer`` loads, and ``info.json``, ours, written last. Shards name a tokenizer by its sha256.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from refinery.errors import ConfigError, IntegrityError
from refinery.hashing import sha256_hex
from refinery.tokenization.special_tokens import end_and_pad

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
INFO_FILE = "info.json"
INFO_VERSION = 1

PROBES = (
    "The quick brown fox doesn't jump over 1234567 lazy dogs.",
    "第一条　为了保护民事主体的合法权益，调整民事关系。",
    "在Python中，len('汉字')返回2；3.14159≈π\r\n",
    "Cafe\u0301 naïve Ångström — “quoted” … Привет, мир!",
    "👩‍👩‍👧‍👦 👍🏽 🇨🇳 \U0002070e\U00024b62",
    "\tdef f(x):\n\t\treturn x  # \n\n\n    ",
    "\x00\x1b[0m\ufeff\u200b\u3000",
    "हिन्दी ภาษาไทย 한국어 العربية",
)
"""Texts whose ids are kept in ``info.json``: prose, Han, mixed scripts, marks, emoji, code, control characters."""


@dataclass(frozen=True)
class TokenizerInfo:
    """What ``info.json`` says of a vocabulary."""

    name: str
    sha256: str
    """Of the bytes of ``tokenizer.json``."""
    vocab_size: int
    """Highest id + 1: rows of an embedding matrix."""
    special_ids: dict[str, int]
    """Control tokens by content; none of them is ever produced from text."""
    eos_id: int | None
    pad_id: int | None
    probes: tuple[tuple[str, tuple[int, ...]], ...]
    """(text, ids) of `PROBES`, special tokens read as text."""
    origin: dict[str, Any]
    """How it came to be: the recipe's hash and sample size, or the vocabulary that was adopted or extended."""
    version: int = INFO_VERSION

    def to_json(self) -> str:
        """Return the content of ``info.json``."""
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True, indent=1) + "\n"


def plain_tokenizer(definition: bytes, where: str) -> Tokenizer:
    """Load a ``tokenizer.json`` so that special tokens inside a text are read as text.

    Raises:
        IntegrityError: the library cannot read it.
    """
    try:
        tokenizer = Tokenizer.from_buffer(definition)
    except ValueError as error:
        raise IntegrityError(
            f"{where} is not a tokenizer that this version of the tokenizers library reads ({error}); "
            "restore the file or train the tokenizer again"
        ) from error
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def probe_ids(tokenizer: Tokenizer) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Encode `PROBES`."""
    return tuple((text, tuple(tokenizer.encode(text, add_special_tokens=False).ids)) for text in PROBES)


def describe(definition: bytes, config: dict[str, Any] | None, name: str, origin: dict[str, Any]) -> TokenizerInfo:
    """Make the card of a vocabulary from the bytes of its ``tokenizer.json`` and its parsed config.

    Raises:
        IntegrityError: the definition cannot be read, or its config names an end or pad token that it lacks.
    """
    tokenizer = plain_tokenizer(definition, name)
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    parsed = json.loads(definition)
    eos, pad = end_and_pad(parsed, config)
    for token in (eos, pad):
        if token is not None and token not in vocab:
            raise IntegrityError(
                f"{name}: {CONFIG_FILE} names {token!r}, none of the {len(vocab):,} tokens of {TOKENIZER_FILE}; "
                "the two files belong to different tokenizers"
            )
    special = [token["content"] for token in parsed.get("added_tokens", []) if token.get("special")]
    return TokenizerInfo(
        name=name,
        sha256=sha256_hex(definition),
        vocab_size=max(vocab.values()) + 1,
        special_ids={token: vocab[token] for token in special},
        eos_id=None if eos is None else vocab[eos],
        pad_id=None if pad is None else vocab[pad],
        probes=probe_ids(tokenizer),
        origin=origin,
    )


def write_tokenizer(out_dir: str | Path, definition: bytes, config: dict[str, Any], info: TokenizerInfo) -> None:
    """Write the three files of a tokenizer, each atomically, the card last."""
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INFO_FILE).unlink(missing_ok=True)
    write_atomically(folder / TOKENIZER_FILE, definition)
    config_text = json.dumps(config, ensure_ascii=False, sort_keys=True, indent=1) + "\n"
    write_atomically(folder / CONFIG_FILE, config_text.encode())
    write_atomically(folder / INFO_FILE, info.to_json().encode())


def load_info(path: str | Path) -> TokenizerInfo:
    """Read the card of a tokenizer and check that ``tokenizer.json`` is the one that it describes.

    Args:
        path: the tokenizer's folder, or the ``tokenizer.json`` inside it.
    Raises:
        ConfigError: no tokenizer or no card there.
        IntegrityError: the card is damaged or describes another ``tokenizer.json``.
    """
    folder = tokenizer_folder(path)
    definition = read_definition(folder)
    try:
        text = (folder / INFO_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{folder} has no {INFO_FILE}; make it with refinery.tokenization.info.adopt_tokenizer(path, out_dir)"
        ) from None
    try:
        fields = json.loads(text)
        fields["probes"] = tuple((probe, tuple(ids)) for probe, ids in fields["probes"])
        info = TokenizerInfo(**fields)
    except (ValueError, TypeError, KeyError) as error:
        raise IntegrityError(f"{folder / INFO_FILE} is damaged ({error}); make the tokenizer again") from error
    if info.version != INFO_VERSION:
        raise IntegrityError(f"{folder / INFO_FILE} has version {info.version}, this code reads {INFO_VERSION}")
    if sha256_hex(definition) != info.sha256:
        raise IntegrityError(
            f"{folder / TOKENIZER_FILE} has sha256 {sha256_hex(definition)}, its {INFO_FILE} says {info.sha256}: "
            "the file was damaged or replaced; restore it, or adopt it as a new tokenizer and encode everything again"
        )
    return info


def verify_tokenizer(path: str | Path, expected_sha256: str) -> TokenizerInfo:
    """Check that the tokenizer at `path` is the one that made some shards, and return its card.

    Raises:
        ConfigError, IntegrityError: as `load_info`; also when the vocabulary is an intact but different one.
    """
    info = load_info(path)
    if info.sha256 != expected_sha256:
        raise IntegrityError(
            f"{tokenizer_folder(path)} holds tokenizer {info.name!r} with sha256 {info.sha256}, expected "
            f"{expected_sha256}: ids of one are noise to the other; give the tokenizer that made the shards"
        )
    return info


def adopt_tokenizer(path: str | Path, out_dir: str | Path, name: str | None = None) -> TokenizerInfo:
    """Take a tokenizer made elsewhere (a model's folder): copy its definition byte for byte and write its card.

    Args:
        path: folder with ``tokenizer.json`` and, if there is one, ``tokenizer_config.json``; or the former file.
        out_dir: where the copy goes.
        name: the card's name; the folder's name by default.
    Raises:
        ConfigError: no ``tokenizer.json`` there, or nothing in it ends documents.
        IntegrityError: a file cannot be read, or the two contradict each other.
    """
    folder = tokenizer_folder(path)
    definition = read_definition(folder)
    config: dict[str, Any] = {}
    if (folder / CONFIG_FILE).exists():
        try:
            config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        except ValueError as error:
            raise IntegrityError(f"{folder / CONFIG_FILE} is not JSON ({error}); restore it") from error
    info = describe(definition, config, name or folder.name, {"adopted_from": folder.name})
    if info.eos_id is None:
        raise ConfigError(
            f"nothing ends documents in {folder}: neither eos_token in {CONFIG_FILE} nor a usual name among "
            f"{list(info.special_ids)[:8]}; set eos_token in {CONFIG_FILE}"
        )
    write_tokenizer(out_dir, definition, config or auto_config(info), info)
    return info


def auto_config(info: TokenizerInfo) -> dict[str, Any]:
    """Return a ``tokenizer_config.json`` with which ``transformers.AutoTokenizer`` loads the vocabulary."""
    by_id = {index: token for token, index in info.special_ids.items()}
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,  # its default rewrites " ." on decoding: not lossless
        "model_max_length": 1_000_000_000,
    }
    if info.eos_id is not None:
        config["eos_token"] = by_id.get(info.eos_id)
    if info.pad_id is not None:
        config["pad_token"] = by_id.get(info.pad_id)
    return config


def tokenizer_folder(path: str | Path) -> Path:
    """Return the folder of a tokenizer given as a folder or as its ``tokenizer.json``."""
    given = Path(path)
    return given.parent if given.name == TOKENIZER_FILE else given


def read_definition(folder: Path) -> bytes:
    """Return the bytes of ``tokenizer.json``.

    Raises:
        ConfigError: it is not there.
    """
    try:
        return (folder / TOKENIZER_FILE).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"no {TOKENIZER_FILE} in {folder}; train one, or give the folder that holds it") from None


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that readers see the old content or the new, never a part."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
