"""Whose training examples helped whom, and which ones?

python examples/whose_examples_helped.py demo
"""

import sys

import subnet
from subnet.analysis import AttributionSettings, attribute_checkpoint

checkpoint = subnet.open_checkpoint(sys.argv[1])
settings = AttributionSettings(method="tracin", n_train=64, n_test=32)
attribution = attribute_checkpoint(checkpoint, settings)

influence = attribution.to_frame()
means = influence[influence["measure"] == "mean"]
for test, rows in means.groupby("test_language", sort=False):
    best = rows.loc[rows["value"].idxmax()]
    print(f"{test}: helped most by examples of {best.train_language} ({best.value:+.3g})")

examples = attribution.top(1)
for pair in examples[examples["role"] == "helpful"].nlargest(5, "score").itertuples():
    print(
        f"{pair.train_text!r} ({pair.train_language}) helped {pair.test_text!r}: {pair.score:.3g}"
    )
