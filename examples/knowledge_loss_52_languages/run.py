"""What causes knowledge loss over 52 languages? From training to the written answer.

python examples/knowledge_loss_52_languages/run.py --out knowledge-loss
"""

import argparse
import shutil
import sys
from pathlib import Path

from knowledge_loss.answers import answer
from knowledge_loss.design import PARTS, train_all, train_part, trained_cells
from knowledge_loss.figures import write_figures
from knowledge_loss.findings import write_findings, write_readme
from knowledge_loss.reading import read_study

from subnet._tables import write_csv
from subnet.errors import SubnetError

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Train what is not trained yet, then write tables, figures and findings.md."""
    arguments = _arguments()
    out = arguments.out
    config = arguments.config or HERE / ("quick.toml" if arguments.quick else "config.toml")
    if arguments.data:
        from knowledge_loss.texts import prepare

        config = prepare(HERE / "sib200.toml", arguments.data, out)
    if arguments.part in PARTS:
        train_part(arguments.part, config, out, progress=arguments.progress)
        return
    if arguments.part == "all":
        train_all(Path(__file__).resolve(), config, out)
    study = read_study(trained_cells(out))
    answers = answer(study, n_permutations=arguments.permutations)
    tables = out / "tables"
    tables.mkdir(parents=True, exist_ok=True)
    for name in ("groups", "contrasts", "ladder", "inflation"):
        write_csv(getattr(answers, name), tables / f"{name}.csv")
    write_csv(study.outcomes, tables / "outcomes.csv")
    write_csv(study.languages.reset_index(), tables / "languages.csv")
    figures = write_figures(study, answers, out / "figures")
    text = write_findings(study, answers)
    (out / "findings.md").write_text(text, encoding="utf-8")
    print(text)
    print(f"tables, figures and findings.md are in {out}", file=sys.stderr)
    if arguments.readme:
        (HERE / "figures").mkdir(exist_ok=True)
        for name in figures:
            shutil.copyfile(out / "figures" / name, HERE / "figures" / name)
        shown = "\n\n".join(f"![{name[:-4]}](figures/{name})" for name in figures)
        quick = "*Printed by `--quick`, which is too small to answer the question.*\n\n"
        write_readme(HERE / "README.md", f"{quick * arguments.quick}{text}\n{shown}\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("knowledge-loss"), metavar="DIR")
    parser.add_argument("--quick", action="store_true", help="sixteen languages, two minutes")
    parser.add_argument(
        "--part",
        choices=("all", *PARTS, "answers"),
        default="all",
        help="train both parts at once and answer; train one; answer from what is trained",
    )
    parser.add_argument("--config", type=Path, help="train this configuration instead")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="texts instead of CLDR: a folder of SIB-200"
    )
    parser.add_argument("--permutations", type=int, default=4999, metavar="N")
    parser.add_argument("--progress", action="store_true", help="a bar (with --part)")
    parser.add_argument(
        "--readme", action="store_true", help="also put the findings into this folder's README.md"
    )
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except SubnetError as error:
        sys.exit(f"error: {error}")
