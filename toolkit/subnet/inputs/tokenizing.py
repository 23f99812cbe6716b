"""The tokenizer that belongs to a model, and what it calls the languages of a translation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from subnet.errors import InputError, MissingInputError, UnknownLanguageError
from subnet.language import parse_language

#: Where a tokenizer that was saved leaves a trace.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
#: A tokenizer without a length of its own states a number far above this one.
_LONGEST = 1 << 20


def load_tokenizer(folders: Sequence[Path], config: Any) -> tuple[Any, int]:
    """The tokenizer, and how many tokens the model reads.

    Args:
        folders: Where it may be, the likeliest first.
        config: Of the model.

    Raises:
        MissingInputError: There is none, or it cannot be loaded.
    """
    from transformers import AutoTokenizer

    stated = str(getattr(config, "_name_or_path", "") or "")
    here = [folder for folder in folders if any((folder / n).is_file() for n in _TOKENIZER_FILES)]
    # A hub name leads to the local cache; a folder without a tokenizer leads nowhere.
    places: list[Path | str] = [*here] or ([stated] if stated and not Path(stated).is_dir() else [])
    missing = MissingInputError(
        "the base has no tokenizer",
        path=folders[0] if folders else None,
        expected="tokenizer.json beside its weights",
        fix="save the tokenizer there, or give tokenised examples (input_ids, labels) as data=",
    )
    if not places:
        raise missing
    try:
        tokenizer = AutoTokenizer.from_pretrained(places[0], local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise MissingInputError(
            f"the base's tokenizer cannot be loaded ({error})", path=missing.path, fix=missing.fix
        ) from error
    lengths = [n for n in (tokenizer.model_max_length,) if n < _LONGEST]
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 2:
        # Some models keep the first positions for padding; a stated length accounts for that.
        lengths.append(positions if lengths else positions - 2)
    return tokenizer, int(min(lengths, default=512))


def translates(tokenizer: Any) -> bool:
    """Whether the tokenizer marks the languages of source and target (M2M, NLLB, mBART)."""
    return hasattr(tokenizer, "src_lang") and hasattr(tokenizer, "tgt_lang")


def set_direction(tokenizer: Any, example: Any, source: Path | None) -> None:
    """Make a translation tokenizer mark the languages of an example.

    They are its `source_language` and `target_language`, else what its `language` says as
    `de>en`. Left alone, such tokenizers mark a source as English and a target as the source's
    language without a word.

    Raises:
        InputError: The example does not say the direction, or the tokenizer lacks a language.
    """
    before, arrow, after = str(example.get("language", "")).partition(">")
    stated = {
        "source_language": example.get("source_language") or (before if arrow else None),
        "target_language": example.get("target_language") or (after if arrow else None),
    }
    for key, label in stated.items():
        if not isinstance(label, str):
            raise InputError(
                f"an example of {example.get('language')} has no {key!r}, and the tokenizer marks "
                "the language of each text",
                path=source,
                expected="'source_language' and 'target_language', or a language such as de>en",
            )
    codes = _codes(tokenizer)
    for key, attribute in (("source_language", "src_lang"), ("target_language", "tgt_lang")):
        code = _code(str(stated[key]), codes, source)
        if getattr(tokenizer, attribute) != code:
            setattr(tokenizer, attribute, code)


def _codes(tokenizer: Any) -> Sequence[str]:
    """What the tokenizer calls the languages it knows."""
    for name in ("lang_code_to_id", "lang_code_to_token"):
        known = getattr(tokenizer, name, None)
        if known:
            return list(known)
    named = set(tokenizer.special_tokens_map.values()) if tokenizer.special_tokens_map else set()
    return [token for token in tokenizer.all_special_tokens if token not in map(str, named)]


def _code(label: str, codes: Sequence[str], source: Path | None) -> str:
    if label in codes:
        return label
    wanted = parse_language(label).identity
    for code in codes:
        try:
            if parse_language(code).identity == wanted:
                return code
        except UnknownLanguageError:
            continue
    raise InputError(
        f"the tokenizer does not know the language {label!r}",
        path=source,
        expected=f"one of its {len(codes)} languages"
        + (f", such as {', '.join(codes[:4])}" if codes else ""),
    )
