"""Which attention heads does each language need, and do two languages need the same ones?

python examples/which_heads_belong_to_a_language.py demo
python examples/which_heads_belong_to_a_language.py sib200   # a small LM on SIB-200, if it is there

The second trains a byte-level language model on sentences of SIB-200 (github.com/dadelani/sib-200,
read from ../shared/data/sib200 or $SIB200) in six languages, which takes minutes.
"""

import csv
import json
import os
import sys
from pathlib import Path

import subnet

LANGUAGES = ("eng_Latn", "deu_Latn", "rus_Cyrl", "arb_Arab", "hin_Deva", "zho_Hans")


def train_on_sib200(source: Path, folder: Path, steps: int = 400) -> Path:
    """Write a checkpoint directory: base/, validation.jsonl and test.jsonl."""
    import torch
    from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

    rows = {"train": [], "validation": [], "test": []}
    for language in LANGUAGES:
        with (source / f"{language}.tsv").open(encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.DictReader(file, delimiter="\t")):
                split = ("validation", "test")[number % 2] if row["split"] == "dev" else "train"
                rows[split].append({"language": language, "text": row["text"][:200]})
    tokenizer = ByT5Tokenizer(model_max_length=128)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=4,
        num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=128, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    order = torch.randint(len(rows["train"]), (steps, 24)).tolist()
    for batch in order:
        texts = [rows["train"][i]["text"] for i in batch]
        inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"trained for {steps} steps, last loss {loss.item():.2f} nats per byte")
    for part in (model, tokenizer):
        part.save_pretrained(folder / "base")
    for split in ("validation", "test"):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows[split]]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


folder = Path(sys.argv[1])
if folder.name == "sib200" and not folder.exists():
    source = Path(os.environ.get("SIB200", "../shared/data/sib200"))
    if not source.is_dir():
        sys.exit(f"{source} is not there: get SIB-200, or give the directory of a checkpoint")
    train_on_sib200(source, folder)
checkpoint = subnet.open_checkpoint(folder)
stability = subnet.measure_stability(checkpoint, method="head-pruning", model="base")
found = stability.subnetworks

for heads in found:
    kept = [f"{name.removesuffix('.heads')}: {heads.dense(name).nonzero()[0].tolist()}"
            for name in heads.shapes]  # fmt: skip
    print(f"{heads.language} needs {heads.count} of {heads.size} heads   {'  '.join(kept)}")

overlap = subnet.measure_overlap(found, halves=stability.halves)
print(f"Jaccard by chance {overlap.floor('jaccard'):.2f}, of the same language on the other half "
      f"of its examples {overlap.ceiling('jaccard'):.2f}")  # fmt: skip
for pair in overlap.pairs("jaccard").nlargest(5, "value").itertuples():
    print(f"{pair.language_a} {pair.language_b}  {pair.value:.2f}  q = {pair.q_value:.2g}")

ablation = subnet.ablate(checkpoint, [heads for heads in found if 0 < heads.count < heads.size])
specific = ablation.specificity.query("specific")["language"]
print(f"specific to their language (removing them hurts it most): {', '.join(specific) or 'none'}")
