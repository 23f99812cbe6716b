"""What scores of translations are to be read beside: references and copies of the source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from subnet.training.tasks._translation_encoding import PairEncoder
from subnet.training.tasks._translation_language import identified, why_not
from subnet.training.tasks._translation_rows import Pair
from subnet.training.tasks._translation_scores import bleu_tokenizer, corpus_scores, signatures

if TYPE_CHECKING:
    import pandas as pd


#: Column of the table of a direction to what it is a value of, and to its column of a signature.
_ROWS = {
    "reference_language_accuracy": ("reference", "language_accuracy", ""),
    "target_cut_share": ("reference", "cut_share", ""),
    "copy_language_accuracy": ("copy", "language_accuracy", ""),
    "copy_chrf": ("copy", "chrf", "chrf_signature"),
    "copy_bleu": ("copy", "bleu", "bleu_signature"),
    "copy_share": ("copy", "equal_share", ""),
    "source_cut_share": ("copy", "cut_share", ""),
}


def baseline_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The table of `Translation.references`, a row for each direction, baseline and metric.

    Args:
        table: One row per direction.

    Returns:
        language, baseline (`reference` or `copy`), metric (named as in `scores.csv` where it is one
        of those), value, n, signature, reason.
    """
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "language": row["language"],
                "baseline": baseline,
                "metric": metric,
                "value": row[column],
                "n": row["n"],
                "signature": row[signature] if signature else "",
                "reason": row["reason"] if metric == "language_accuracy" else "",
            }
            for row in table.to_dict(orient="records")
            for column, (baseline, metric, signature) in _ROWS.items()
        ]
    )


def reference_table(
    pairs: Sequence[Pair], encoder: PairEncoder, among: Sequence[str] | None
) -> pd.DataFrame:
    """One row per direction; the columns are those of `Translation.references`."""
    import pandas as pd

    table = []
    for direction in dict.fromkeys(pair.direction for pair in pairs):
        own = [pair for pair in pairs if pair.direction == direction]
        sources, targets = [pair.source for pair in own], [pair.target for pair in own]
        languages = [pair.target_language for pair in own]
        tokenizer = bleu_tokenizer(languages[0])
        copied, signature = corpus_scores(sources, targets, tokenizer), signatures(tokenizer)
        encoded = [encoder(pair) for pair in own]
        table.append(
            {
                "language": direction,
                "n": len(own),
                "reference_language_accuracy": identified(targets, languages, among).mean(),
                "copy_language_accuracy": identified(sources, languages, among).mean(),
                "copy_chrf": copied.chrf,
                "copy_bleu": copied.bleu,
                "copy_share": np.mean([pair.source == pair.target for pair in own]),
                "source_cut_share": np.mean([one.source_cut for one in encoded]),
                "target_cut_share": np.mean([one.target_cut for one in encoded]),
                "chrf_signature": signature["chrf"],
                "bleu_signature": signature["bleu"],
                "reason": why_not(languages[0], among),
            }
        )
    return pd.DataFrame(table)
