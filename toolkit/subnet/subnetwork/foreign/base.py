"""The base that masks are over: a folder against which they are checked, or only a name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from subnet import _files
from subnet.checkpoint.base import NOT_STATED
from subnet.checkpoint.tensors import TensorStore, has_model, open_model_store
from subnet.errors import MissingInputError, NotComparableError
from subnet.subnetwork.mask import Subnetwork, nearest

_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
_NEURONS = ("intermediate_size", "ffn_dim", "d_ff", "n_inner", "ffn_hidden_size", "hidden_dim")
_WIDTH = ("hidden_size", "n_embd")
#: Names of head masks in the calls of encoder-decoder models of transformers 4, to the names of
#: the entries of their layers, as in `unit_parameters`.
STACKS = {
    "head_mask": "encoder.layers.{}.heads",
    "decoder_head_mask": "decoder.layers.{}.heads",
    "cross_attn_head_mask": "decoder.layers.{}.cross.heads",
}
#: Models whose feed-forward layer is four times as wide where their configuration is silent.
_FOURFOLD = frozenset({"bloom", "codegen", "gpt2", "gpt_bigcode", "gpt_neo", "gptj"})


@dataclass(frozen=True)
class StatedBase:
    """A base as the caller states it.

    Attributes:
        identity: What makes two bases the same: name, or content where there are weights.
        folder: Its folder, None where only a name is known.
        store: Its tensors, None where they are not here.
        config: Its `config.json`, empty where it is not here.
    """

    identity: str = NOT_STATED
    folder: Path | None = None
    store: TensorStore | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    def n_layers(self, stack: str = "") -> int | None:
        """Number of layers (of the encoder, of the decoder), where the configuration says it."""
        return self._number((f"{stack}_layers", f"num_{stack}_layers", *_LAYERS))

    def n_heads(self, stack: str = "") -> int | None:
        """Attention heads per layer."""
        return self._number((f"{stack}_attention_heads", *_HEADS))

    def n_neurons(self, stack: str = "") -> int | None:
        """Neurons of a layer's feed-forward block."""
        stated = self._number((f"{stack}_ffn_dim", *_NEURONS))
        width = self._number(_WIDTH)
        if stated is None and width and self.config.get("model_type") in _FOURFOLD:
            return 4 * width
        return stated

    @property
    def has_two_stacks(self) -> bool:
        """Whether it has an encoder and a decoder."""
        return bool(self.config.get("is_encoder_decoder"))

    def _number(self, keys: tuple[str, ...]) -> int | None:
        inner = self.config.get("text_config")
        for config in (self.config, inner if isinstance(inner, Mapping) else {}):
            for key in keys:
                value = config.get(key)
                if isinstance(value, int) and not isinstance(value, bool):
                    return value
        return None

    def fit(self, subnetwork: Subnetwork, path: Path) -> Subnetwork:
        """The mask over this base, under the base's own names.

        Raises:
            NotComparableError: It covers a tensor or a layer that the base does not have, or one of
                another shape.
        """
        if subnetwork.granularity == "direction":
            self._check_directions(subnetwork, path)
            return replace(subnetwork, base=self.identity)
        if subnetwork.granularity != "weight":
            self._check_units(subnetwork, path)
            return replace(subnetwork, base=self.identity)
        if self.store is None:
            return replace(subnetwork, base=self.identity)
        names = {name: self._name(name, subnetwork.shapes[name], path) for name in subnetwork.bits}
        signs = subnetwork.signs
        return replace(
            subnetwork,
            base=self.identity,
            bits={names[name]: bits for name, bits in subnetwork.bits.items()},
            shapes={names[name]: shape for name, shape in subnetwork.shapes.items()},
            signs=None if signs is None else {names[name]: bits for name, bits in signs.items()},
        )

    def _name(self, name: str, shape: tuple[int, ...], path: Path) -> str:
        assert self.store is not None  # noqa: S101 - asked for only where there are tensors
        found = self.store.find(name)
        if found is None:
            raise NotComparableError(
                f"covers {name}, which the base {self.folder} does not have",
                path=path,
                expected=nearest(name, self.store.infos),
                fix="was it made for another base?",
            )
        if self.store.infos[found].shape != shape:
            raise NotComparableError(
                f"has a mask of shape {list(shape)} for {name}",
                path=path,
                expected=f"{list(self.store.infos[found].shape)}, as in {self.folder}",
                fix="was it made for another base?",
            )
        return found

    def _check_directions(self, subnetwork: Subnetwork, path: Path) -> None:
        """Each entry `<module>.directions` needs the module's weight matrix in the base.

        Its directions are numbered within the extraction: how many there are says nothing of it.
        """
        if self.store is None:
            return
        for name in subnetwork.shapes:
            module = name.removesuffix(".directions")
            if self.store.find(f"{module}.weight") is None:
                raise NotComparableError(
                    f"has directions of {module}, which the base {self.folder} does not have",
                    path=path,
                    expected=nearest(f"{module}.weight", self.store.infos),
                    fix="was it made for another base?",
                )

    def _check_units(self, subnetwork: Subnetwork, path: Path) -> None:
        kind = subnetwork.granularity
        stacks: dict[tuple[str, str], dict[int, int]] = {}
        for name, (width,) in subnetwork.shapes.items():
            stack, _, rest = ("." + name).rpartition(".layers.")
            number, _, what = rest.partition(".")
            stacks.setdefault((stack.lstrip("."), what), {})[int(number)] = width
        has_names = any(stack for stack, _ in stacks)
        if self.has_two_stacks and not has_names:
            raise NotComparableError(
                f"has {kind}s of layers without saying whether of the encoder or the decoder",
                path=path,
                expected=f"a base with one stack; {self.folder} has two",
                fix=f"save {', '.join(STACKS)} as one .npz" if kind == "head" else None,
            )
        if self.config and has_names and not self.has_two_stacks:
            raise NotComparableError(
                f"has {kind}s of an encoder and a decoder",
                path=path,
                expected=f"a base with two stacks; {self.folder} has one",
                fix="was it made for another base?",
            )
        for (stack, _), widths in stacks.items():
            units = self.n_heads(stack) if kind == "head" else self.n_neurons(stack)
            layers = self.n_layers(stack)
            found = sorted(set(widths.values()))
            of_base = layers or len(widths), [units] if units else found
            if (len(widths), found) != of_base or sorted(widths) != [*range(len(widths))]:
                where = f" in the {stack}" if stack else ""
                raise NotComparableError(
                    f"has {len(widths)} layers of {' and '.join(map(str, found))} {kind}s{where}",
                    path=path,
                    expected=f"{layers} layers of {units}, as in {self.folder}"
                    if self.config
                    else "one number of units, and layers from 0 without a gap",
                    fix="was it made for another base?",
                )


def state_base(base: str | Path | None) -> StatedBase:
    """What is known of a base: of a folder its content, else its name.

    Raises:
        MissingInputError: A path leads nowhere, or its folder holds no model.
    """
    if base is None:
        return StatedBase()
    folder = Path(base)
    if not folder.is_dir():
        if isinstance(base, Path) or folder.is_absolute() or str(base).startswith("."):
            raise MissingInputError("there is no such base", path=folder, expected="a model folder")
        return StatedBase(str(base))
    stated = _files.read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    config = stated if isinstance(stated, Mapping) else {}
    if has_model(folder):
        store = open_model_store(folder)
        return StatedBase(f"{folder.name} ({store.fingerprint()})", folder, store, config)
    if not config:
        raise MissingInputError(
            "holds no model", path=folder, expected="config.json, model.safetensors or both"
        )
    return StatedBase(folder.name, folder, None, config)
