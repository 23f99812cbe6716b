"""What does each layer know: which language a text is in, and what it is about?

python examples/probing_in_ten_lines.py demo
"""

import sys

import pandas as pd

import subnet_probes

found = subnet_probes.representations(sys.argv[1], layers="all", pool="mean")
settings = subnet_probes.ProbeSettings(mdl=False)
language = subnet_probes.probe_language(found, settings=settings)
label = subnet_probes.probe_labels(found, pooled=True, settings=settings)
columns = ["layer", "task", "score", "ci_low", "ci_high", "majority", "random_labels"]
table = pd.concat([language.frame, label.frame]).query("metric == 'accuracy'")[columns]
print(table.round(3).to_string(index=False))
