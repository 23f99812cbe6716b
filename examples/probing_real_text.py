"""Which layer knows the language, the topic and the parts of speech of real text?

python examples/probing_real_text.py data                   # sib200/*.tsv and ud/*/*.conllu in it
python examples/probing_real_text.py data xlm-roberta-base  # a model's folder, or one of the hub

SIB-200 (github.com/dadelani/sib-200): topics of parallel sentences. Universal Dependencies
(universaldependencies.org): parts of speech. Without a model a small byte-level encoder is trained
on the sentences of SIB-200 for `--steps` steps of masked bytes (0: random weights).
"""

import argparse
import csv
import sys
from pathlib import Path

import subnet_probes as probes

SETTINGS = probes.ProbeSettings(mdl=False, n_resamples=200)


def read_sib200(folder, concepts):
    """Sentences of the same concepts in every language."""
    for path in sorted(folder.glob("*.tsv")):
        with path.open(encoding="utf-8", newline="") as file:
            rows = sorted(
                csv.DictReader(file, delimiter="\t"), key=lambda row: int(row["index_id"])
            )
        for row in rows[:concepts]:
            name = f"{path.stem}-{row['index_id']}"
            yield {"language": path.stem, "id": name, "concept": row["index_id"],
                   "label": row["category"], "text": row["text"]}  # fmt: skip


def read_ud(folder, sentences):
    """Words and their UPOS; of a word that is written as one and analysed as several, none."""
    for treebank in sorted(path for path in folder.iterdir() if path.is_dir()):
        texts = [path.read_text(encoding="utf-8") for path in sorted(treebank.glob("*.conllu"))]
        parts = [part for text in texts for part in text.split("\n\n") if part.strip()]
        for number, part in enumerate(parts[:sentences]):
            lines = [line.split("\t") for line in part.splitlines() if not line.startswith("#")]
            words = [(line[1], line[3]) for line in lines if line[0].isdigit()]
            if words and not any("-" in line[0] for line in lines):
                name, tags = treebank.name, [tag for _, tag in words]
                tokens = [word for word, _ in words]
                yield {"language": name.split("-")[0], "id": f"{name}-{number}",
                       "tokens": tokens, "tags": tags}  # fmt: skip


def small_encoder(texts, steps):
    """A byte-level encoder of four blocks, and its tokenizer."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    from subnet.training.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(160)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=128, num_hidden_layers=4,
                        num_attention_heads=4, intermediate_size=512, pad_token_id=0,
                        max_position_embeddings=160)  # fmt: skip
    model = BertForMaskedLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for batch in torch.randint(len(texts), (steps, 16)).tolist():
        inputs = tokenizer([texts[i] for i in batch], padding=True, truncation=True,
                           return_tensors="pt")  # fmt: skip
        ids, there = inputs["input_ids"], inputs["attention_mask"].bool()
        hidden = (torch.rand(ids.shape) < 0.3) & there
        loss = model(input_ids=ids.masked_fill(hidden, 0), attention_mask=there.long(),
                     labels=ids.masked_fill(~hidden, -100)).loss  # fmt: skip
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = f"trained for {steps} steps, last loss {loss.item():.2f}" if steps else "random"
    print(
        f"a byte-level encoder of 4 blocks, width 128, {trained}: it may know spelling and script,"
    )
    print("and knows no language: the numbers show what is measured, not what a model can learn")
    return model.eval(), tokenizer


parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("data", type=Path)
parser.add_argument("model", nargs="?", help="a transformers model; default: a small one")
parser.add_argument("--steps", type=int, default=150)
parser.add_argument("--concepts", type=int, default=100, help="sentences of SIB-200")
parser.add_argument("--sentences", type=int, default=60, help="sentences per treebank of UD")
given = parser.parse_args()
for name in ("sib200", "ud"):
    if not (given.data / name).is_dir():
        sys.exit(f"skipped: {given.data / name} is not there; this example reads SIB-200 and UD")

sib = list(read_sib200(given.data / "sib200", given.concepts))
ud = list(read_ud(given.data / "ud", given.sentences))
if given.model:
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = (
        AutoModel.from_pretrained(given.model),
        AutoTokenizer.from_pretrained(given.model),
    )
else:
    model, tokenizer = small_encoder([row["text"] for row in sib], given.steps)

found = probes.representations(model, sib, tokenizer=tokenizer)
language = probes.probe_language(found, settings=SETTINGS).matrix()["all"]
topic = probes.probe_labels(found, pooled=True, settings=SETTINGS)
retrieval = probes.language_similarity(found, "retrieval", n_shuffles=1).groupby("layer")
print(f"\nSIB-200: {len(found)} sentences in {len(found.languages)} languages")
print("layer  language  topic  (majority)  retrieval P@1  (shuffled)")
for layer in found.layers:
    pairs = retrieval.get_group(layer)
    print(f"{layer:>5}  {language[layer]:8.3f}  {topic.matrix().loc[layer, 'all']:5.3f}"
          f"  {topic.matrix('majority').loc[layer, 'all']:10.3f}"
          f"  {pairs['value'].mean():13.3f}  {pairs['shuffled'].mean():10.3f}")  # fmt: skip

words = probes.representations(model, ud, pool="token", tokenizer=tokenizer)
tags = probes.probe_tokens(words, settings=SETTINGS)
print(f"\nUPOS on UD: {len(words)} words in {len(words.languages)} treebanks; accuracy "
      "(selectivity: above a random tag per word type)")  # fmt: skip
table = tags.matrix().T.join(tags.matrix("selectivity").T.add_suffix(" "))
table.loc["mean"] = table.mean()
print(f"{'':>12}" + "".join(f"{'layer ' + layer:>16}" for layer in words.layers))
for name, row in table.iterrows():
    cells = [f"{row[layer]:8.3f} ({row[layer + ' ']:+.2f})" for layer in words.layers]
    print(f"{name:>12}{' '.join(cells)}")
for line in (*topic.warnings, *tags.warnings)[:5]:
    print("note:", line)
