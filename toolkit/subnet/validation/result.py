"""What `ablate` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from subnet._tables import MAIN_RUN, Provenance
from subnet.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

#: Columns of the table of an ablation.
COLUMNS = (
    "run", "mask_language", "test_language", "condition", "loss", "accuracy", "change", "ci_low",
    "ci_high", "seed_low", "seed_high", "n", "n_masks", "how", "reason",
)  # fmt: skip
#: Columns of the table of verdicts.
SPECIFICITY = (
    "run", "language", "own", "others", "random_own", "random_others", "value", "ci_low", "ci_high",
    "p_examples", "p_random", "n_random_as_large", "p_value", "q_value", "smallest_p", "testable",
    "specific", "n", "n_others", "n_random", "paired", "reason",
)  # fmt: skip
OVERALL = ("run", "value", "p_value", "smallest_p", "n_languages", "reason")


@dataclass(frozen=True, eq=False)
class Ablation:
    """What every language loses where one language's subnetwork is removed, or kept alone.

    Attributes:
        frame: One row per run, language of the mask, test language and condition (`whole`,
            `removed`, `kept`, `random_removed`, `random_kept`): mean `loss` in nats and `accuracy`
            (NaN for language models); `change` of the loss against the whole model on the same
            examples (positive = hurt), with a 95 % bootstrap interval over examples; for random
            masks means over `n_masks` seeds, and the smallest and largest mean change of a seed
            (`seed_low`, `seed_high`); `n` examples; `how` (`base` or `zero`: what takes the
            place of what is removed); `reason` where something is undefined.
        specificity: One row per run and language whose mask was removed: mean change of its
            own loss (`own`), of the others' (`others`), the same of random masks (`random_own`,
            `random_others`), and `value` = (own − random_own) − (others − random_others), with a
            95 % interval over examples. `p_examples` is one-sided, over examples: by exchanging
            signs where examples are `paired` by concept, by exchanging languages where not.
            `p_random` is one-sided, of own − others among random masks, whose standardised values
            are pooled over languages; `n_random_as_large` of the language's own `n_random` were
            at least as large. `p_value` is the larger of both, `q_value` is Benjamini and
            Hochberg's over the languages of the run. `specific`: q ≤ .05 and own > 0.
            `testable`: whether the numbers of examples and masks could have given that.
        overall: One row per run: `value` = mean over languages of what own − others exceeds its
            mean over random masks by, and its one-sided `p_value` by exchanging each mask with
            its random masks.
        languages: Test languages, in order.
        warnings: What a reader must know before believing the numbers, one line each.
        provenance: Settings, seed, versions.
    """

    frame: pd.DataFrame
    specificity: pd.DataFrame
    overall: pd.DataFrame
    languages: tuple[str, ...]
    warnings: tuple[str, ...]
    provenance: Provenance

    def to_frame(self) -> pd.DataFrame:
        """The table (a copy of `frame`)."""
        return self.frame.copy()

    def matrix(
        self, condition: str = "removed", *, value: str = "change", run: str | None = None
    ) -> pd.DataFrame:
        """Language of the mask × test language.

        Args:
            condition: One of those in `frame`.
            value: A column of `frame`.
            run: By default `main`, or the first where there is none of that name.

        Returns:
            The values, mask_language in rows; NaN where undefined. Under `whole`, a row is what
            the model of the row's mask loses as it is.

        Raises:
            InputError: There is no such condition, value or run.
        """
        import pandas as pd

        for name, wanted, column in (("condition", condition, "condition"), ("run", run, "run")):
            known = list(dict.fromkeys(self.frame[column]))
            if wanted is not None and wanted not in known:
                raise InputError(f"{name} is {wanted!r}", expected=f"one of {', '.join(known)}")
        numbers = COLUMNS[4:13]
        if value not in numbers:
            raise InputError(f"value is {value!r}", expected=f"one of {', '.join(numbers)}")
        runs = list(dict.fromkeys(self.frame["run"]))
        if run is None:
            run = MAIN_RUN if MAIN_RUN in runs else runs[0]
        rows = self.frame[(self.frame["run"] == run) & (self.frame["condition"] == condition)]
        masks = list(dict.fromkeys(rows["mask_language"]))
        table = pd.DataFrame(np.nan, index=masks, columns=list(self.languages))
        for mask, test, number in zip(
            rows["mask_language"], rows["test_language"], rows[value], strict=True
        ):
            table.loc[mask, test] = number
        return table.rename_axis(index="mask_language", columns="test_language")
