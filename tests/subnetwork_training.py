"""Small models and languages to train subnetworks on."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from checkpoint_makers import bert
from subnet.subnetwork import Subnetwork

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.fixture(autouse=True, scope="module")
def quick_collection() -> Iterator[None]:
    """Trainer collects garbage whenever it starts; what is imported need not be searched by it."""
    gc.freeze()
    yield
    gc.unfreeze()


def encoder(seed: int = 0, **settings: Any) -> Any:
    """The small encoder without dropout, whose classifier matters from the first step."""
    model = bert(seed, **{**NO_DROPOUT, **settings})
    with torch.no_grad():
        model.classifier.weight.normal_(0, 0.5, generator=torch.Generator().manual_seed(seed))
    return model


def sentences(n: int = 24, *, seed: int = 0, shift: int = 0) -> list[dict[str, Any]]:
    """Examples whose label is their first token's id, plus a shift, modulo 3."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(5, 40, (n, 5), generator=generator).tolist()
    return [{"input_ids": row, "labels": (row[0] + shift) % 3} for row in rows]


def collate(features: Any) -> dict[str, torch.Tensor]:
    """A batch of examples of one length."""
    return {
        "input_ids": torch.tensor([entry["input_ids"] for entry in features]),
        "labels": torch.tensor([entry["labels"] for entry in features]),
    }


def state(model: Any) -> dict[str, torch.Tensor]:
    """A copy of all parameters."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def random_mask(
    model: Any, density: float = 0.3, *, seed: int = 0, pick: str = "weight", base: str = "tiny"
) -> Subnetwork:
    """A random mask over the matrices of the encoder's layers."""
    generator = torch.Generator().manual_seed(seed)
    return Subnetwork.from_arrays(
        {
            name: (torch.rand(parameter.shape, generator=generator) < density).numpy()
            for name, parameter in model.named_parameters()
            if "encoder.layer" in name and name.endswith(pick) and parameter.ndim == 2
        },
        language="de",
        base=base,
    )


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal to the bit: -0.0 is not 0.0."""
    return torch.equal(a.detach().view(torch.int32), b.detach().view(torch.int32))
