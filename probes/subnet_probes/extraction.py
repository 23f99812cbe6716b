"""Hidden states of a data set at every layer, in one forward pass over it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from subnet import _files
from subnet._tables import MAIN_RUN, provenance
from subnet.errors import InputError, MissingInputError
from subnet.subnetwork.settings import one_of
from subnet_probes._encoding import Encoded, Encoder, Example, longest
from subnet_probes._fingerprint import fingerprint
from subnet_probes._items import items_of, n_words_of
from subnet_probes._pooling import POOLS, SUBTOKENS, pool_sentences, pool_words
from subnet_probes._stacks import DECODER, Stacks, asks_for_decoder, choose_layers, find_stacks
from subnet_probes._storage import Sheets, reopen, write_header
from subnet_probes._subject import Loaded, Surgery, examples_of, load, operated
from subnet_probes.representation import Representations

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

    from subnet.checkpoint import Checkpoint
    from subnet.subnetwork import Subnetwork


def representations(
    model: nn.Module | Checkpoint | str | Path,
    data: Iterable[Example] | None = None,
    *,
    layers: str | int | Sequence[str | int] = "all",
    pool: str = "mean",
    subtokens: str = "first",
    special_tokens: bool = True,
    batch_size: int = 16,
    tokenizer: Any = None,
    max_length: int | None = None,
    subnetwork: Subnetwork | None = None,
    condition: str = "removed",
    how: str | nn.Module | None = None,
    language: str | None = None,
    stage: int | None = None,
    run: str = MAIN_RUN,
    store: str | Path | None = None,
) -> Representations:
    """Hidden states of any `transformers` model, one row per sentence or per word.

    One forward pass per example, whatever the number of layers, in `eval()` mode and without
    gradients; heads for tasks are not run. Neither padding nor the batch size changes a row (to
    rounding). Memory: one batch's hidden states at all layers, and n·d numbers per kept layer.

    Args:
        model: A live model (encoder, decoder, encoder-decoder; PEFT around it), or a checkpoint,
            its directory, a model's or an adapter's folder; of these `language` or `stage` says
            which, else it is the base. Adapters from disk are merged.
        data: Mappings with `text` (or `source`; or `tokens`, words), as in `test.jsonl`, or with
            `input_ids` (and `attention_mask`, where they are padded). `language`, `id`, `concept`
            and `label` are carried along. By default the checkpoint's `test.jsonl`.
        layers: `"all"`, or names and numbers: 0 is what the embeddings put out, k the output of
            block k, −1 the last (behind the final normalisation). Of a model with two stacks they
            are the encoder's, and `"decoder"`, `"decoder.3"` the decoder's, which reads each
            example's `target` (or `labels`, `decoder_input_ids`).
        pool: What a sentence's row is: the `"mean"` of its tokens, the `"first"` or the `"last"`
            one; or `"token"`: one row per word of `tokens` (with its tag of `tags`). Words are
            found by the offsets of a fast tokenizer; those of which the model reads no token are
            left out and counted (`words_left_out` in the provenance). Of `input_ids`, `word_ids`
            say it.
        subtokens: With `"token"`, what a word's row is: its `"first"` or `"last"` token, or the
            `"mean"` of them.
        special_tokens: Whether tokens that the tokenizer adds count as tokens of a sentence.
            Tokenizers that mark languages add the language itself.
        batch_size: Examples per forward pass, of similar lengths.
        tokenizer: By default the one beside the model.
        max_length: Most tokens of a sentence; by default what model and tokenizer say. `truncated`
            in the provenance counts the examples that are longer.
        subnetwork: A mask of weights, heads or neurons.
        condition: The model without it (`"removed"`), without all else that the mask is over
            (`"kept"`), or `"whole"`. The model is bitwise what it was afterwards.
        how: What takes the place of removed weights: `"base"` (their values before training; of a
            stage, before that stage), `"zero"`, or a live model that has the values. By default
            `"base"` where training changed the model, else `"zero"`. Heads and neurons are gated.
        language: Of a checkpoint, whose adapter or fine-tuned weights.
        stage: Of a checkpoint, the weights after that stage; 0 is the base.
        run: The run, where a checkpoint holds several.
        store: A folder to stream to, one `.npy` per layer, mapped into memory; it appears when it
            is complete. Where it is there already, it is opened, nothing is run, and a fingerprint
            tells whether it is of this model, these data and settings. Without it, more than 2 GiB
            go to a temporary folder, which goes with the result.

    Returns:
        Rows in the order of the data, in float32 at least.

    Raises:
        InputError: There are no data, an example is not usable, a layer does not exist, a hidden
            state is not finite (says of which layer and item), or a setting is out of range.
        MissingInputError: There is no model, tokenizer or data.
        NotComparableError: The mask does not fit the model, or the folder holds something else.

    Example:
        >>> found = representations(model, examples, layers=[0, 6, -1])  # doctest: +SKIP
        >>> without = representations(model, examples, subnetwork=mask)  # doctest: +SKIP
    """
    import torch

    from subnet.model import evaluation_mode

    one_of("pool", pool, POOLS)
    one_of("subtokens", subtokens, SUBTOKENS)
    size: Any = batch_size
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise InputError(f"batch_size is {batch_size!r}", expected="1 or more")
    surgery = Surgery(subnetwork, condition, how)
    decoder, by_word = asks_for_decoder(layers), pool == "token"
    if decoder and by_word:
        raise InputError(
            "words are asked for of a decoder beside an encoder",
            expected="layers of the encoder",
            fix="take pool='mean', 'first' or 'last' of the decoder",
        )
    examples = list(examples_of(model) if data is None else data)
    _check(examples)
    loaded = load(model, surgery, language, stage, run)
    stacks = find_stacks(loaded.model, decoder=decoder)
    encode = find_encoder(examples, loaded, stacks, tokenizer, max_length, special_tokens, by_word)
    rows = [encode(example, number) for number, example in enumerate(examples)]
    items = items_of(examples, rows, by_word=by_word)
    settings = {
        "layers": layers if isinstance(layers, str | int) else list(layers),
        "pool": pool,
        "subtokens": subtokens if by_word else None,
        "special_tokens": None if by_word else special_tokens,
        "max_length": encode.max_length,
    }
    with contextlib.ExitStack() as stack:
        record = stack.enter_context(operated(loaded, surgery))
        recorded: dict[str, Any] = settings | {"of": dict(loaded.described), "surgery": record}
        recorded |= {"batch_size": batch_size, "n_examples": len(rows)}
        recorded["truncated"] = sum(row.cut for row in rows)
        if by_word:
            n_words = sum(n_words_of(example) for example in examples)
            recorded["words_left_out"] = max(0, n_words - len(items))
        folder = None
        if store is not None:
            recorded["fingerprint"] = fingerprint(
                loaded.model, surgery, record, rows, items, settings
            )
            there = reopen(Path(store), recorded["fingerprint"])
            if there is not None:
                return there
            folder = stack.enter_context(_files.new_directory(store))
        made = provenance("representations", recorded, libraries=("torch", "transformers"))
        stack.enter_context(evaluation_mode(loaded.model))
        stack.enter_context(torch.no_grad())
        sheets = Sheets(folder)
        try:
            _fill(sheets, stacks, rows, items, layers, pool, subtokens, batch_size)
        except BaseException:
            sheets.discard()
            raise
        if folder is None:
            found = Representations(sheets.arrays, items, made)
            sheets.keep_with(found)
            return found
        write_header(folder, sheets.arrays, items, made)
    return Representations.load(store or "")


def _fill(
    sheets: Sheets,
    stacks: Stacks,
    rows: Sequence[Encoded],
    items: pd.DataFrame,
    layers: Any,
    pool: str,
    subtokens: str,
    batch_size: int,
) -> None:
    """Run the model over all rows, and write what becomes of each where it belongs."""
    sizes = np.array([len(row.words) if pool == "token" else 1 for row in rows])
    starts = np.concatenate([[0], np.cumsum(sizes)])
    names: tuple[str, ...] = ()
    for numbers in _batches(rows, batch_size, padded=stacks.masked):
        states = stacks.run([rows[i] for i in numbers])
        if not names:
            names = choose_layers(layers, list(states.hidden), type(stacks.module).__name__)
        places = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in numbers])
        if not places.size:
            continue
        for name in names:
            hidden = states.hidden[name]
            if pool == "token":
                pooled = pool_words(hidden, [rows[i].words for i in numbers], subtokens)
            else:
                stack = DECODER if name.startswith(DECODER) else ""
                pooled = pool_sentences(hidden, states.counted[stack], pool)
            _refuse_undefined(pooled, name, items, places)
            values = pooled.cpu().numpy()
            if not sheets.arrays:
                widths = {name: states.hidden[name].shape[-1] for name in names}
                sheets.add(widths, int(starts[-1]), values.dtype)
            sheets.arrays[name][places] = values
    sheets.close()


def _batches(rows: Sequence[Encoded], batch_size: int, *, padded: bool) -> Iterator[list[int]]:
    """Numbers of rows of similar lengths; of one length where the model takes no mask."""
    lengths = [len(row.counted) for row in rows]
    batch: list[int] = []
    for number in sorted(range(len(rows)), key=lengths.__getitem__, reverse=True):
        if batch and (
            len(batch) == batch_size or (not padded and lengths[number] != lengths[batch[0]])
        ):
            yield batch
            batch = []
        batch.append(number)
    yield batch


def _refuse_undefined(pooled: Tensor, layer: str, items: pd.DataFrame, places: Any) -> None:
    finite = pooled.isfinite().all(dim=1)
    if bool(finite.all()):
        return
    place = int(places[int((~finite).nonzero()[0])])
    item = items.iloc[place]
    name = f"item {place if item['id'] is None else item['id']}"
    raise InputError(
        f"layer {layer} of {name} ({item['language']}) is not finite",
        expected="real numbers at every layer",
        fix="is the model broken, or does its type (float16) not hold its numbers?",
    )


def find_encoder(
    examples: Sequence[Example],
    loaded: Loaded,
    stacks: Stacks,
    tokenizer: Any,
    max_length: int | None,
    special_tokens: bool,
    by_word: bool,
) -> Encoder:
    """How texts or token ids become what the model reads.

    Raises:
        MissingInputError: Texts have no tokenizer.
    """
    from subnet.inputs import load_tokenizer
    from subnet.model import base_model

    config: Any = base_model(loaded.model).config
    text = any("input_ids" not in example for example in examples)
    known = max_length
    if tokenizer is not None:
        known = longest(tokenizer, config)
    elif text:
        try:
            tokenizer, known = load_tokenizer(loaded.folders, config)
        except MissingInputError as error:
            if loaded.folders:
                raise
            raise MissingInputError(
                "texts and a live model are given, and no tokenizer",
                fix="give tokenizer=, or examples with input_ids",
            ) from error
    if max_length is not None and max_length < 1:
        raise InputError(f"max_length is {max_length}", expected="1 or more")
    pad = getattr(config, "pad_token_id", None)
    ends = (getattr(config, "eos_token_id", None), getattr(config, "bos_token_id", None))
    return Encoder(
        tokenizer,
        known if max_length is None else max_length,
        by_word,
        special_tokens,
        stacks.decoder,
        None if pad in ends else pad,
        None,
    )


def _check(examples: Sequence[Any]) -> None:
    if not examples:
        raise InputError("the data have no example", expected="at least one")
    for number, example in enumerate(examples):
        if not isinstance(example, Mapping):
            raise InputError(
                f"example {number} is a {type(example).__name__}",
                expected='a mapping such as {"language": "de", "text": …}',
            )
