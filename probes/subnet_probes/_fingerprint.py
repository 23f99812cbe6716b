"""SHA-256 of what representations depend on: the model that ran, what it read, the settings."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from subnet import _files
from subnet_probes._encoding import Encoded

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from subnet_probes._subject import Surgery


def fingerprint(
    model: nn.Module,
    surgery: Surgery,
    record: Mapping[str, Any],
    rows: Sequence[Encoded],
    items: pd.DataFrame,
    settings: Mapping[str, Any],
) -> dict[str, str]:
    """Digests by what a user can change: `model`, `data`, `settings`.

    Args:
        model: As it is run, with weights already removed; gates are not in its weights.
        surgery: The mask.
        record: What was done with it.
        rows: What the model reads.
        items: What the rows are of.
        settings: How hidden states become rows.
    """
    from subnet.influence import ModelHash

    state = hashlib.sha256(ModelHash(model).now().encode())
    state.update(_files.to_json(record).encode())
    if surgery.subnetwork is not None and surgery.applies:
        for name, bits in sorted(surgery.subnetwork.bits.items()):
            state.update(name.encode() + bits.tobytes())
    data = hashlib.sha256()
    for row in rows:
        content = [dict(row.inputs), row.counted, row.words, row.numbers, row.decoder]
        data.update(repr(content).encode())
    columns = {name: [repr(v) for v in items[name]] for name in items.columns}
    data.update(_files.to_json(columns).encode())
    made = hashlib.sha256(_files.to_json(settings).encode())
    return {"model": state.hexdigest(), "data": data.hexdigest(), "settings": made.hexdigest()}
