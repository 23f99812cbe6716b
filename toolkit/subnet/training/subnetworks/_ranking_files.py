"""Rankings in a checkpoint of Trainer's, so that training goes on with the same masks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from subnet import _files
from subnet.errors import FileFormatError, MissingInputError
from subnet.training.subnetworks._ranking import Ranking

_KEY = "dynamic_mask"


def save_rankings(path: Path, rankings: Mapping[str, Ranking], settings: Mapping[str, Any]) -> None:
    """Scores, masks and history of each language, and the settings by which they were found."""
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    for number, ranking in enumerate(rankings.values()):
        at = f"{number}/"
        tensors |= {f"{at}score.{name}": value.cpu() for name, value in ranking.scores.items()}
        tensors |= {f"{at}bits.{name}": torch.from_numpy(b) for name, b in ranking.bits.items()}
    content = {
        "settings": dict(settings),
        "languages": list(rankings),
        "sizes": [ranking.size for ranking in rankings.values()],
        "seen": [ranking.seen for ranking in rankings.values()],
        "history": [ranking.changes for ranking in rankings.values()],
    }
    with _files.new_file(path) as building:
        building.write_bytes(save(tensors, metadata={_KEY: _files.to_json(content)}))


def load_rankings(
    path: Path,
    rankings: Mapping[str, Ranking],
    targets: Mapping[str, nn.Parameter],
    settings: Mapping[str, Any],
) -> None:
    """Bring rankings to where `save_rankings` left them.

    Raises:
        MissingInputError: There is no such file.
        FileFormatError: It is of other settings, languages or parameters.
    """
    from safetensors.torch import load_file

    if not path.is_file():
        raise MissingInputError(
            "is not there, and the dynamic mask cannot go on without it",
            path=path,
            expected="a checkpoint that was saved with this mask",
        )
    _, header = _files.read_safetensors_header(path)
    tensors = load_file(path)
    content = json.loads(header.get(_KEY, "{}"))
    same = (
        content.get("settings") == json.loads(_files.to_json(dict(settings)))
        and content.get("languages") == list(rankings)
        and content.get("sizes") == [ranking.size for ranking in rankings.values()]
    )
    if not (same and _fit(tensors, targets)):
        raise FileFormatError(
            "was saved by a mask of other settings or over other parameters",
            path=path,
            expected="the settings with which training began",
            fix="go on with those, or begin anew",
        )
    for number, ranking in enumerate(rankings.values()):
        ranking.seen = content["seen"][number]
        ranking.changes = [
            {key: math.nan if value is None else value for key, value in change.items()}
            for change in content["history"][number]
        ]
        ranking.scores = {
            name: tensors[key].to(parameter.device)
            for name, parameter in targets.items()
            if (key := f"{number}/score.{name}") in tensors
        }
        bits = {
            name: tensors[key].numpy()
            for name in targets
            if (key := f"{number}/bits.{name}") in tensors
        }
        if bits:
            ranking.hold(bits)


def _fit(tensors: Mapping[str, Tensor], targets: Mapping[str, nn.Parameter]) -> bool:
    """Whether saved scores and masks are over these parameters, and each mask over all of them."""
    masks: dict[str, set[str]] = {}
    for key, value in tensors.items():
        number, _, rest = key.partition("/")
        kind, _, name = rest.partition(".")
        if name not in targets:
            return False
        if kind == "bits":
            masks.setdefault(number, set()).add(name)
            if value.numel() != -(-targets[name].numel() // 8):
                return False
        elif value.shape != targets[name].shape:
            return False
    return all(names == targets.keys() for names in masks.values())
