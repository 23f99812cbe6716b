"""Live models from what training left on disk: a base, with a language's or a stage's weights."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import nn

from subnet import _files
from subnet._tables import MAIN_RUN
from subnet.checkpoint import Checkpoint, Entry, open_checkpoint
from subnet.checkpoint.inventory import weights_of_stages
from subnet.checkpoint.peft import read_config
from subnet.checkpoint.tensors import (
    ADAPTER_CONFIG,
    open_adapter_store,
    open_model_store,
)
from subnet.errors import FileFormatError, InputError, MissingInputError, UnsafeFileError

_CONFIG = "config.json"
_SEQ2SEQ = "AutoModelForSeq2SeqLM"
#: What a task is called, by us, by PEFT and by transformers, to the class that loads it.
_AUTO_CLASSES = {
    "sequence-classification": "AutoModelForSequenceClassification",
    "text-classification": "AutoModelForSequenceClassification",
    "seq-cls": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "token-cls": "AutoModelForTokenClassification",
    "causal-lm": "AutoModelForCausalLM",
    "language-modeling": "AutoModelForCausalLM",
    "text-generation": "AutoModelForCausalLM",
    "sequence-to-sequence-lm": _SEQ2SEQ,
    "seq-2-seq-lm": _SEQ2SEQ,
    "seq2seq-lm": _SEQ2SEQ,
    "translation": _SEQ2SEQ,
}


def load_model(
    checkpoint: Checkpoint | str | Path,
    *,
    language: str | None = None,
    stage: int | None = None,
    adapter: str | Path | None = None,
    run: str = MAIN_RUN,
    merge: bool = False,
    trust_remote_code: bool = False,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """Load a model as training left it, in `eval()` mode.

    Without `language`, `stage` or `adapter` it is the base. Nothing is downloaded: a base that is
    known by a hub name only must stand in the directory as `base/`, or in the local cache.

    Args:
        checkpoint: A checkpoint, its directory, a model's folder, or a PEFT adapter's folder.
        language: Label of the language whose adapter or fine-tuned weights to load.
        stage: Number of the training stage whose weights to load; 0 is the start.
        adapter: A PEFT adapter's folder to put on the base.
        run: The run, where a checkpoint holds several.
        merge: Merge an adapter into the base, which gives the base's class and parameters. A LoRA
            is otherwise kept apart, under `peft.PeftModel`.
        trust_remote_code: Run code that comes with the model.
        dtype: Type of the weights.

    Returns:
        The model for its task (`task` in `subnet.toml` or `task_type` of the adapter where they
        name one, else `architectures` of its configuration).

    Raises:
        MissingInputError: What was asked for, or the base, is not there.
        UnsafeFileError: Weights are a pickle, or the model brings its own code.
        InputError: More than one thing was asked for.
        FileFormatError: Weights are missing from the files, or are left over: part of the model
            would be random, or part of the training lost.

    Example:
        >>> model = load_model("checkpoint/", language="de")  # doctest: +SKIP
    """
    asked = {"language": language, "stage": stage, "adapter": adapter}
    given = [name for name, value in asked.items() if value is not None]
    if len(given) > 1:
        raise InputError(
            f"{' and '.join(given)} were given together", expected="one of them, or none"
        )
    if isinstance(checkpoint, Checkpoint):
        base, weights = _in_checkpoint(checkpoint, language, stage, adapter, run)
        task = _task(checkpoint.settings.task)
        return _load(base, weights, task, merge, trust_remote_code, dtype)
    folder = Path(checkpoint)
    if (folder / ADAPTER_CONFIG).is_file() and not given:
        # As `adapters/<language>` of a directory: what it calls its base may stand further up.
        above = [folder, *folder.resolve().parents[:2]]
        base = _stated_base(folder, above, [])
        return _load(base, folder, None, merge, trust_remote_code, dtype)
    if (folder / _CONFIG).is_file() and language is None and stage is None:
        weights = None if adapter is None else _adapter_folder(adapter)
        return _load(folder, weights, None, merge, trust_remote_code, dtype)
    return load_model(
        open_checkpoint(folder), language=language, stage=stage, adapter=adapter, run=run,
        merge=merge, trust_remote_code=trust_remote_code, dtype=dtype,
    )  # fmt: skip


def _in_checkpoint(
    checkpoint: Checkpoint,
    language: str | None,
    stage: int | None,
    adapter: str | Path | None,
    run: str,
) -> tuple[Path | str, Path | None]:
    """The base, or the whole fine-tuned model, and the adapter to put on it."""
    if run not in checkpoint.runs:
        raise MissingInputError(
            f"has no run {run!r}", path=checkpoint.path, expected=" or ".join(checkpoint.runs)
        )
    bases = _bases(checkpoint, run)
    if adapter is not None:
        place = _adapter_folder(adapter)
    else:
        entry = _choose(checkpoint, language, stage, run)
        if entry is None:
            if not bases:
                raise MissingInputError(
                    "has no base model",
                    path=checkpoint.path,
                    fix="put its folder there as base/",
                )
            return bases[0], None
        if entry.adapter is not None:
            raise InputError(
                f"holds several adapters in one file, {entry.adapter} among them",
                path=entry.path,
                expected="one adapter per folder",
                fix="save each with save_pretrained(selected_adapters=[name])",
            )
        place = entry.path
        if not (place / ADAPTER_CONFIG).is_file():
            return place, None
    return _stated_base(place, list(checkpoint.directories), bases), place


def _choose(
    checkpoint: Checkpoint, language: str | None, stage: int | None, run: str
) -> Entry | None:
    """Entry of the weights that were asked for; None for the base."""
    if language is not None:
        entries = {
            entry.language.label: entry
            for entry in checkpoint.entries
            if entry.kind in ("adapter", "weights") and entry.run == run and entry.language
        }
        if language not in entries:
            raise MissingInputError(
                f"has no adapter and no fine-tuned weights of {language!r}",
                path=checkpoint.path,
                expected=" or ".join(sorted(entries)) or "adapters/<language>/",
            )
        return entries[language]
    if stage is None:
        return None
    stages = weights_of_stages(checkpoint.entries, run)
    if stage and stage not in stages:
        raise MissingInputError(
            f"has no weights of stage {stage}",
            path=checkpoint.path,
            expected=f"one of the stages {', '.join(map(str, stages))}"
            if stages
            else "stages/<number>-<language>/ with an adapter or a model",
        )
    return stages.get(stage)


def _adapter_folder(adapter: str | Path) -> Path:
    if not (Path(adapter) / ADAPTER_CONFIG).is_file():
        raise MissingInputError(f"has no {ADAPTER_CONFIG}", path=adapter)
    return Path(adapter)


def _bases(checkpoint: Checkpoint, run: str) -> list[Path]:
    """Folders of bases, the run's own first."""
    entries = [entry for entry in checkpoint.entries if entry.kind == "base"]
    return [entry.path for entry in sorted(entries, key=lambda entry: entry.run != run)]


def _stated_base(adapter: Path, roots: list[Path], bases: list[Path]) -> Path | str:
    """The base that an adapter states: here, in the directory, or a hub name."""
    stated = read_config(adapter).get("base_model_name_or_path")
    if stated:
        for folder in (root / str(stated) for root in (*roots, adapter)):
            if folder.is_dir():
                return folder
        moved = PurePosixPath(str(stated).replace("\\", "/")).name
        named = [folder for folder in bases if folder.name == moved]
        if named:
            return named[0]
    if bases:
        return bases[0]
    if stated:
        return str(stated)
    raise MissingInputError(
        "does not state its base", path=adapter, fix="put the base's folder beside it as base/"
    )


def _load(
    base: Path | str,
    adapter: Path | None,
    task: str | None,
    merge: bool,
    trust_remote_code: bool,
    dtype: torch.dtype,
) -> nn.Module:
    if adapter is not None:
        task = task or _task(read_config(adapter).get("task_type"))
    with _quiet():
        model = _base_model(base, adapter, task, trust_remote_code, dtype)
        if adapter is not None:
            model = _put_on(model, adapter)
            if merge:
                model = model.merge_and_unload()
    return model.to(dtype).eval()  # type: ignore[no-any-return]


def _base_model(
    base: Path | str,
    adapter: Path | None,
    task: str | None,
    trust_remote_code: bool,
    dtype: torch.dtype,
) -> Any:
    import transformers

    path = base if isinstance(base, Path) else None
    if path is not None:
        _check_folder(path, trust_remote_code=trust_remote_code)
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    try:
        config = transformers.AutoConfig.from_pretrained(base, **options)
        kind = _class(config, task, path)
        saved = _labels_of(adapter)
        if saved is not None and _lacks_head(config, kind):
            config.num_labels = saved
        model, report = kind.from_pretrained(
            base, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True,
            **options,
        )  # fmt: skip
    except OSError as error:
        if path is not None:
            raise FileFormatError(f"cannot be loaded ({error})", path=path) from error
        raise MissingInputError(
            f"the base {base!r} is neither in the directory nor in the local cache",
            path=adapter,
            fix="put the base model's folder into the directory as base/",
        ) from error
    except (ValueError, KeyError, RuntimeError) as error:
        raise FileFormatError(
            f"cannot be loaded ({error})", path=path or adapter, expected="a transformers model"
        ) from error
    _check_complete(report, path or adapter, adapter)
    return model


def _check_folder(folder: Path, *, trust_remote_code: bool) -> None:
    if not (folder / _CONFIG).is_file():
        raise MissingInputError(f"has no {_CONFIG}", path=folder, fix="copy it beside the weights")
    open_model_store(folder)  # says what is wrong with the files
    config = _files.read_json(folder / _CONFIG)
    if isinstance(config, dict) and config.get("auto_map") and not trust_remote_code:
        raise UnsafeFileError(
            "names code of its own (auto_map), which loading it would run",
            path=folder / _CONFIG,
            fix="pass trust_remote_code=True if you trust it",
        )


def _class(config: Any, task: str | None, path: Path | None) -> Any:
    """The class for the task, where it is known; else the one that the weights were saved from."""
    import transformers

    if task == _SEQ2SEQ and not getattr(config, "is_encoder_decoder", True):
        task = "AutoModelForCausalLM"  # a decoder translates, too
    if task is not None:
        return getattr(transformers, task)
    for name in config.architectures or ():
        kind = getattr(transformers, name, None)
        if kind is not None:
            return kind
        auto = (getattr(config, "auto_map", None) or {}).keys()
        remote = next((key for key in auto if key.startswith("AutoModelFor")), None)
        if remote is not None:
            return getattr(transformers, remote)
    raise InputError(
        f"the architecture {', '.join(config.architectures or ()) or '(none stated)'} is not known "
        "to transformers",
        path=None if path is None else path / _CONFIG,
        expected="'architectures' that names a model class",
        fix='or task in subnet.toml, for example task = "sequence-classification"',
    )


def _lacks_head(config: Any, kind: Any) -> bool:
    """Whether the weights were saved from another class than the one for the task."""
    words = kind.__name__.removeprefix("AutoModel")
    return not any(name.endswith(words) for name in config.architectures or ())


def _labels_of(adapter: Path | None) -> int | None:
    """Number of labels of the classifier that an adapter brings; None where it brings none."""
    if adapter is None:
        return None
    for name, info in open_adapter_store(adapter).infos.items():
        *_, module, leaf = name.split(".")
        is_head = leaf == "weight" and module in ("classifier", "score", "out_proj")
        if is_head and len(info.shape) == 2 and "layer" not in name:
            return info.shape[0]
    return None


def _check_complete(report: dict[str, Any], path: Path | None, adapter: Path | None) -> None:
    """Refuse a model part of which is random, unless the adapter brings that part."""
    brought = open_adapter_store(adapter).infos if adapter is not None else {}
    brought_names = {name.removeprefix("base_model.model.") for name in brought}
    missing = sorted(set(report["missing_keys"]) - brought_names)
    mismatched = sorted(str(key[0] if isinstance(key, tuple) else key)
                        for key in report["mismatched_keys"])  # fmt: skip
    if missing or mismatched:
        name = (missing or mismatched)[0]
        raise FileFormatError(
            f"{'has no' if missing else 'has another shape of'} {name}, which would be random",
            path=path,
            expected="weights of the whole model, task head included",
            fix="save the model that was trained, or name its task in subnet.toml",
        )


def _put_on(model: Any, adapter: Path) -> Any:
    """The model with an adapter, every tensor of which found its place."""
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    store = open_adapter_store(adapter)
    try:
        model = PeftModel.from_pretrained(model, str(adapter))
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise FileFormatError(
            f"does not fit the base ({error})",
            path=adapter,
            fix="was it trained on another base?",
        ) from error
    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    # Embeddings may be saved along with an adapter; those are loaded into the base.
    loaded = {**model.state_dict(), **own}
    for path in store.paths:
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in file.keys():  # noqa: SIM118 - no dict
                if name in loaded and torch.equal(
                    loaded[name].float(), file.get_tensor(name).float()
                ):
                    continue
                raise FileFormatError(
                    f"holds {name}, which has no place in the base",
                    path=path,
                    fix="was it trained on another base?",
                )
    absent = sorted(set(own) - set(store.infos))
    if absent:
        raise FileFormatError(
            f"has no {absent[0]}, which would be random", path=adapter, fix="save the adapter again"
        )
    return model


def _task(words: object) -> str | None:
    """Class that loads a task, by its usual names; None for the user's own words."""
    if not isinstance(words, str):
        return None
    return _AUTO_CLASSES.get("-".join(words.lower().replace("_", " ").split()))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What the libraries warn of is checked here, and raised where it matters."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
