"""chrF and BLEU, all of it sacrebleu's; which tokenizer BLEU takes for which language."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from subnet.errors import MissingInputError
from subnet.language import Language

#: Scripts that put no spaces between words: BLEU counts their characters.
_WITHOUT_SPACES = frozenset({"Jpan", "Hira", "Kana", "Thai", "Khmr", "Mymr", "Laoo", "Tibt"})
_HAN = frozenset({"Hani", "Hans", "Hant"})


@dataclass(frozen=True)
class Scores:
    """chrF and BLEU, 0 to 100."""

    chrf: float
    bleu: float


def missing(package: str) -> MissingInputError:
    """What to say where a package of the extra is not installed."""
    return MissingInputError(
        f"scoring translations needs {package}, which is not installed",
        fix='pip install "subnet-toolkit[translation]"',
    )


def bleu_tokenizer(language: Language) -> str:
    """Which tokenizer of sacrebleu BLEU takes for a language: `zh`, `char` or `13a`.

    Chinese is cut into characters and words of other scripts, scripts without spaces into
    characters, everything else as in WMT. The tokenizers with a dictionary (`ja-mecab`, `ko-mecab`)
    or a model to download (`flores200`) are not taken.
    """
    if language.script in _HAN:
        return "zh"
    return "char" if language.script in _WITHOUT_SPACES else "13a"


def sentence_scores(output: str, reference: str, tokenizer: str) -> Scores:
    """Of one sentence: chrF, and BLEU over the orders that it is long enough for.

    Raises:
        MissingInputError: sacrebleu is not installed.
    """
    chrf = _chrf().sentence_score(output, [reference]).score
    return _within(chrf, _bleu(tokenizer, True).sentence_score(output, [reference]).score)


def corpus_scores(outputs: Sequence[str], references: Sequence[str], tokenizer: str) -> Scores:
    """Of all sentences together: n-grams are counted over the corpus, so no mean of sentences.

    Raises:
        MissingInputError: sacrebleu is not installed.
    """
    chrf = _chrf().corpus_score(list(outputs), [list(references)]).score
    return _within(
        chrf, _bleu(tokenizer, False).corpus_score(list(outputs), [list(references)]).score
    )


def signatures(tokenizer: str) -> dict[str, str]:
    """What sacrebleu asks to state beside a score, per metric."""
    metrics = {
        "chrf": _chrf(), "bleu": _bleu(tokenizer, False), "sentence_chrf": _chrf(),
        "sentence_bleu": _bleu(tokenizer, True),
    }  # fmt: skip
    found = {}
    for name, metric in metrics.items():
        metric.corpus_score(["a"], [["a"]])  # which it knows once it has seen references
        found[name] = str(metric.get_signature().format())
    return found


def _within(chrf: float, bleu: float) -> Scores:
    """Both within 0 to 100, beyond which rounding carries a perfect BLEU."""
    return Scores(min(float(chrf), 100.0), min(float(bleu), 100.0))


@functools.cache
def _chrf() -> Any:
    try:
        from sacrebleu.metrics import CHRF
    except ImportError as error:
        raise missing("sacrebleu") from error
    return CHRF()


@functools.cache
def _bleu(tokenizer: str, sentence: bool) -> Any:
    try:
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise missing("sacrebleu") from error
    return BLEU(tokenize=tokenizer, effective_order=sentence)
