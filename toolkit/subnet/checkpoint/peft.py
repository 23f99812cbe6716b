"""PEFT adapters as their configuration and headers describe them: which parameters they change."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from subnet import _files
from subnet._files import TensorInfo
from subnet.checkpoint.tensors import (
    ADAPTER_CONFIG,
    TensorStore,
    open_adapter_store,
)
from subnet.errors import FileFormatError

_FACTOR = re.compile(r"^(?P<module>.+?)\.lora_(?P<side>A|B)(?:\.(?P<adapter>[^.]+))?\.weight$")
_EMBEDDING = re.compile(r"^(?P<module>.+)\.lora_embedding_(?P<side>A|B)(?:\.(?P<adapter>[^.]+))?$")
_MAGNITUDE = re.compile(
    r"^(?P<module>.+)\.lora_magnitude_vector(?:\.(?P<adapter>(?!weight$)[^.]+))?(?:\.weight)?$"
)
_BIAS = re.compile(r"^(?P<module>.+)\.lora_B(?:\.(?P<adapter>[^.]+))?\.bias$")
_SAVED = re.compile(r"^(?P<module>.+)\.modules_to_save(?:\.(?P<adapter>[^.]+))?\.(?P<leaf>[^.]+)$")

#: Initialisations that leave the base's weights as they are, so that ΔW = s·B·A.
_UNTOUCHED = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
#: Initialisations that PEFT can repeat exactly from the base's weights.
REPEATABLE = ("pissa", "olora")
#: Settings under which ΔW is not s·B·A, with what they do.
_UNSUPPORTED = {
    "target_parameters": "LoRA on stacked expert parameters",
    "layer_replication": "replicated layers",
    "use_qalora": "QALoRA pools the input",
    "use_bdlora": "block-diagonal LoRA",
    "kasa_config": "KaSA changes the base's weights",
    "monteclora_config": "Monte Carlo LoRA samples its weights",
    "arrow_config": "Arrow routes between adapters",
}


@dataclass(frozen=True)
class LoraPair:
    """The two factors of one adapted module, by their names in the file."""

    a: str
    b: str
    a_shape: tuple[int, ...]
    b_shape: tuple[int, ...]
    magnitude: str | None = None

    @property
    def rank(self) -> int:
        """R."""
        return self.a_shape[0]


@dataclass(frozen=True)
class Adapter:
    """One adapter of a PEFT folder, as its headers describe it.

    Attributes:
        folder: Where `adapter_config.json` is.
        name: Its name inside the file, None where the file holds one adapter.
        config: Content of `adapter_config.json`.
        store: Its tensors.
        pairs: Base parameter to its factors.
        apart: Base parameter to (what it is, tensor names): what the adapter changes otherwise.
    """

    folder: Path
    name: str | None
    config: Mapping[str, Any]
    store: TensorStore
    pairs: Mapping[str, LoraPair]
    apart: Mapping[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)

    @property
    def base(self) -> str | None:
        """`base_model_name_or_path` as stated."""
        stated = self.config.get("base_model_name_or_path")
        return str(stated) if stated else None

    @property
    def initialisation(self) -> str:
        """`init_lora_weights` as stated, in lower case."""
        return str(self.config.get("init_lora_weights", True)).lower()

    @property
    def needs_base(self) -> str | None:
        """Why ΔW cannot be known without the base's weights, None if it can."""
        if self.config.get("use_dora"):
            return "DoRA rescales the base's weights"
        if self.initialisation in REPEATABLE:
            return f"initialised with {self.initialisation}, which changes the base's weights"
        return None

    @property
    def refusal(self) -> str | None:
        """Why this adapter's ΔW cannot be computed at all, None if it can."""
        return unreadable(self.config)

    def describe(self) -> str:
        """In plain words, for the inventory."""
        ranks = sorted({pair.rank for pair in self.pairs.values()})
        rank = "–".join(str(r) for r in ((ranks[0], ranks[-1]) if len(ranks) > 1 else ranks))
        flavour = "DoRA" if self.config.get("use_dora") else "LoRA"
        text = f"PEFT adapter ({flavour}, rank {rank}, {len(self.pairs)} modules)"
        kinds = sorted({kind for kind, _ in self.apart.values()})
        return f"{text} with {', '.join(kinds)}" if kinds else text


def unreadable(config: Mapping[str, Any]) -> str | None:
    """Why the update of an adapter with this configuration cannot be computed, None if it can."""
    kind = config.get("peft_type")
    if kind != "LORA":
        return f"its PEFT type is {kind or 'not stated'}, and only LoRA changes weights by s·B·A"
    for key, what in _UNSUPPORTED.items():
        if config.get(key):
            return f"{what} ({key})"
    initialisation = config.get("init_lora_weights", True)
    known = (*_UNTOUCHED, *REPEATABLE)
    if initialisation not in known and str(initialisation).lower() not in (*known, "true", "false"):
        return (
            f"initialised with {initialisation}, which changed the base's weights in a way that "
            "its files do not record"
        )
    return None


def read_adapters(folder: Path, config: Mapping[str, Any] | None = None) -> list[Adapter]:
    """The adapters that one PEFT folder's file holds: usually one, several where keys name them.

    Reads headers only.

    Raises:
        FileFormatError: The configuration or the weights are damaged.
        MissingInputError: There are no weights.
        UnsafeFileError: The weights are a pickle.
    """
    config = read_config(folder) if config is None else config
    store = open_adapter_store(folder)
    names: set[str | None] = set()
    for key in store.infos:
        match = _FACTOR.match(key) or _EMBEDDING.match(key)
        if match:
            names.add(match["adapter"])
    if len(names) > 1:
        names.discard(None)
    ordered = sorted(names, key=lambda name: name or "") or [None]
    return [_adapter(folder, config, store, name, alone=len(ordered) == 1) for name in ordered]


def read_config(folder: Path) -> dict[str, Any]:
    """`adapter_config.json` of a PEFT folder."""
    path = folder / ADAPTER_CONFIG
    config = _files.read_json(path)
    if not isinstance(config, dict):
        raise FileFormatError(
            f"is a JSON {type(config).__name__}", path=path, expected="an object written by PEFT"
        )
    return config


def _adapter(
    folder: Path, config: Mapping[str, Any], store: TensorStore, name: str | None, *, alone: bool
) -> Adapter:
    sides: dict[str, dict[str, str]] = {}
    embeddings: dict[str, dict[str, str]] = {}
    magnitudes: dict[str, str] = {}
    apart: dict[str, tuple[str, tuple[str, ...]]] = {}
    for key in sorted(store.infos):
        plain = _base_name(key)
        if match := _FACTOR.match(plain):
            found = sides.setdefault(match["module"], {})
        elif match := _EMBEDDING.match(plain):
            found = embeddings.setdefault(match["module"], {})
        elif match := _MAGNITUDE.match(plain):
            if match["adapter"] == name:
                magnitudes[match["module"]] = key
            continue
        elif match := _BIAS.match(plain):
            if match["adapter"] == name:
                apart[f"{match['module']}.bias"] = ("LoRA bias", (key,))
            continue
        elif "original_module" in plain or "lora_" in plain:
            continue
        elif match := _SAVED.match(plain):
            if match["adapter"] in (None, name) or alone:
                apart[f"{match['module']}.{match['leaf']}"] = ("saved modules", (key,))
            continue
        else:
            apart[plain] = (_kind(plain, config.get("modules_to_save") or ()), (key,))
            continue
        if match["adapter"] == name:
            found[match["side"]] = key
    pairs: dict[str, LoraPair] = {}
    for module, found in sides.items():
        pair = _pair(folder, module, found, store.infos, magnitudes.get(module))
        if len(pair.a_shape) == 2:
            pairs[f"{module}.weight"] = pair
        else:
            apart[f"{module}.weight"] = ("LoRA on convolutions", (pair.a, pair.b))
    for module, found in embeddings.items():
        pair = _pair(folder, module, found, store.infos, None)
        apart[f"{module}.weight"] = ("LoRA on embeddings", (pair.a, pair.b))
    return Adapter(folder, name, config, store, dict(sorted(pairs.items())), apart)


def _pair(
    folder: Path,
    module: str,
    found: Mapping[str, str],
    infos: Mapping[str, TensorInfo],
    magnitude: str | None,
) -> LoraPair:
    if set(found) != {"A", "B"}:
        present = next(iter(found), "neither")
        raise FileFormatError(
            f"{module} has only factor {present} of its LoRA",
            path=folder,
            expected="lora_A and lora_B",
            fix="save the adapter again",
        )
    a, b = infos[found["A"]].shape, infos[found["B"]].shape
    if len(a) < 2 or len(b) < 2 or a[0] != b[1] or not a[0]:
        raise FileFormatError(
            f"{module} has LoRA factors of shapes {list(a)} and {list(b)}",
            path=folder,
            expected="[rank, input] and [output, rank]",
            fix="gather sharded parameters before saving",
        )
    return LoraPair(found["A"], found["B"], a, b, magnitude)


def _base_name(key: str) -> str:
    """Name without the wrappers that PEFT and torch.compile put around the base."""
    for prefix in ("_orig_mod.", "base_model.model.", "_orig_mod."):
        key = key.removeprefix(prefix)
    return key.replace(".base_layer.", ".")


def _kind(parameter: str, saved: Collection[str]) -> str:
    """What a parameter is that has no factors; the bias of a saved module belongs to it."""
    if "token_adapter" in parameter:
        return "trained tokens"
    is_saved = any(f".{name}." in f".{parameter}" for name in saved)
    return "biases" if parameter.endswith("bias") and not is_saved else "saved modules"
