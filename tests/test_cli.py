"""The command line: what it prints where, exit codes, and one clear line for every bad input."""

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import checkpoint_makers as makers
import subnet_cli
from planted import write_arc

FAST = ("--permutations", "99")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_arc(tmp_path_factory.mktemp("cli") / "arc", planted=True)


@pytest.fixture
def arc(original, tmp_path, monkeypatch):
    """A copy to break, in the working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(original, tmp_path / "arc")
    return tmp_path / "arc"


def refused(run, *arguments, left=("arc",)):
    """The one line that a wrong input gets; checks that nothing else happened."""
    code, out, err = run(*arguments)
    assert code == 2, err
    assert out == ""
    assert "Traceback" not in err
    assert err.count("\n") == 1, err
    assert err.startswith("subnet: ")
    assert sorted(path.name for path in Path.cwd().iterdir()) == sorted(left)
    return err


# What it does


def test_analyze_prints_the_headline_and_where_the_report_is(subnet, arc):
    code, out, _ = subnet("analyze", arc, *FAST)
    assert code == 0
    assert "standardised slope" in out
    assert "report: arc-analysis/report.html" in out
    assert (Path("arc-analysis") / "report.html").is_file()


def test_json_on_stdout_is_the_summary_byte_for_byte(subnet, arc):
    code, out, _ = subnet("analyze", arc, *FAST, "--json", "--out", "there")
    assert code == 0
    assert out.encode() == Path("there/summary.json").read_bytes()
    assert json.loads(out)["headline"]["state"]


def test_quiet_prints_nothing(subnet, arc):
    assert subnet("analyze", arc, *FAST, "--quiet") == (0, "", "")


def test_inspect_lists_what_was_found_and_what_is_missing(subnet, arc):
    (arc / "scores.csv").unlink()
    code, out, _ = subnet("inspect", arc)
    assert code == 0
    assert "PEFT adapter (LoRA, rank 4" in out
    assert "scores.csv with at least two" in out
    found = json.loads(subnet("inspect", arc, "--json")[1])
    assert {entry["kind"] for entry in found["recognised"]} == {"base", "adapter"}


def test_extract_writes_masks_that_analyze_reads(subnet, arc):
    code, out, _ = subnet("extract", arc, "--density", "0.1", "--out", "masks")
    assert code == 0
    assert "Subnetworks by magnitude" in out
    assert json.loads(Path("masks/run.json").read_text())["settings"]["density"] == 0.1
    assert "mask" in subnet("inspect", "masks")[1]
    assert subnet("analyze", "masks", "--quiet")[0] == 0


def test_convert_writes_masks_that_analyze_reads(subnet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    heads = {"de": [[1, 0], [0, 1]], "fr": [[1, 1], [0, 1]], "sw": [[1, 1], [1, 1]]}
    Path("heads.json").write_text(json.dumps(heads))
    code, out, err = subnet("convert", "heads.json", "masks")
    assert code == 0
    assert "Masks by head, written to masks/" in out
    assert err == "warning: heads.json: the mask of sw is full: it selects all 4 heads\n"
    record = json.loads(Path("masks/run.json").read_text())
    assert record["command"] == "convert"
    assert set(record["inputs"]) == {"heads.json"}
    assert subnet("overlap", "masks", "--quiet")[0] == 0
    rows = json.loads(
        subnet("convert", "heads.json", "masks", "--overwrite", "--json", "--to", "npz")[1]
    )
    assert {row["language"]: row["density"] for row in rows if row["layer"] == "0"} == {
        "de": 0.5, "fr": 1.0, "sw": 1.0,
    }  # fmt: skip
    assert Path("masks/masks/de.npz").is_file()


def test_convert_asks_for_the_names_of_languages(subnet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    import numpy as np

    np.save("head_mask.npy", np.eye(2))
    code, out, err = subnet("convert", "head_mask.npy", "named")
    assert (code, out) == (2, "")
    assert err == (
        "subnet: head_mask.npy: does not say its language: 'head_mask' is none; "
        "name it with --languages, as in --languages de\n"
    )
    assert not Path("named").exists()
    assert subnet("convert", "head_mask.npy", "named", "--languages", "de")[0] == 0


def test_overlap_prints_pairs_most_first_and_writes_the_graph(subnet, arc):
    code, out, _ = subnet("overlap", arc, "--measure", "cosine", "--json", "--out", "shared")
    assert code == 0
    rows = json.loads(out)
    values = [row["value"] for row in rows]
    assert values == sorted(values, reverse=True)
    assert len(rows) == 8 * 7 // 2
    assert {p.name for p in Path("shared").iterdir()} == {
        "overlap.csv", "cosine.json", "cosine.graphml", "run.json",
    }  # fmt: skip


def test_relate_prints_the_headline_and_both_methods(subnet, arc):
    code, out, _ = subnet("relate", arc, *FAST)
    assert code == 0
    assert "mrqap_dsp" in out
    assert "qap" in out


def test_several_directories_are_several_runs(subnet, arc):
    shutil.copytree(arc, "second")
    code, out, _ = subnet("inspect", arc, "second", "--json")
    assert code == 0
    assert json.loads(out)["runs"] == ["arc", "second"]


# How it behaves


def test_help_costs_little_and_loads_nothing_heavy():
    code = (
        "import sys, resource; sys.argv = ['subnet', '--help']\n"
        "import subnet_cli\n"
        "try: subnet_cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'scipy', 'pandas', 'rich', 'numpy'} & set(sys.modules)\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(sorted(heavy), used.ru_utime + used.ru_stime, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage: subnet" in done.stdout
    assert done.stderr.startswith("[]")


def test_inspect_loads_no_tensor_library(arc):
    code = (
        "import sys; sys.argv = ['subnet', 'inspect', 'arc']\n"
        "import subnet_cli\n"
        "try: subnet_cli.main()\n"
        "except SystemExit as done: assert not done.code\n"
        "heavy = {'torch', 'transformers', 'scipy', 'pandas', 'peft'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


@pytest.mark.parametrize(
    "command", ["analyze", "inspect", "extract", "convert", "overlap", "relate", "demo"]
)
def test_help_of_each_command_ends_with_an_example(subnet, command):
    code, out, _ = subnet(command, "--help")
    assert code == 0
    assert f"subnet {command}" in out.split("Example")[-1]


INTERRUPTED = """
import importlib, signal, sys
import subnet_cli
# A shell that runs the tests in its background has them ignore Ctrl-C, and we inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
room, name = sys.argv.pop(1), sys.argv.pop(1)
room = importlib.import_module(room)
function = getattr(room, name)
def told(*arguments, **named):
    print("here", flush=True)
    return function(*arguments, **named)
setattr(room, name, told)
subnet_cli.main()
"""


@pytest.mark.parametrize(
    "place",
    [
        "subnet.checkpoint open_checkpoint",
        "subnet.analysis.pipeline measure_overlap",
        "subnet.analysis.pipeline relate",
    ],
)
def test_an_interrupted_run_leaves_nothing_and_exits_with_130(arc, place):
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, *place.split(), "analyze", "arc",
         "--permutations", "9999999"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert [path.name for path in Path.cwd().iterdir()] == ["arc"]
    assert err.strip() == "subnet: interrupted; nothing was left behind"


def test_a_defect_is_told_apart_from_bad_input(subnet, arc, monkeypatch, capsys):
    import subnet_cli.inspect

    def broken(_):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(subnet_cli.inspect, "print_checkpoint", broken)
    monkeypatch.setattr(sys, "argv", ["subnet", "inspect", str(arc)])
    with pytest.raises(ZeroDivisionError):
        subnet_cli.main()
    assert "a defect of subnet-toolkit, not of your input" in capsys.readouterr().err


def test_debug_shows_the_traceback_of_a_refusal(monkeypatch, arc):
    from subnet.errors import SubnetError

    monkeypatch.setattr(sys, "argv", ["subnet", "inspect", "nowhere", "--debug"])
    with pytest.raises(SubnetError):
        subnet_cli.main()


# Bad input: one line, exit code 2, nothing left behind


def test_a_directory_that_is_not_there(subnet, arc):
    assert "nowhere: there is no such directory" in refused(subnet, "analyze", "nowhere")


def test_an_empty_directory(subnet, arc):
    Path("empty").mkdir()
    err = refused(subnet, "analyze", "empty", left=("arc", "empty"))
    assert "empty: " in err
    assert "expected" in err


@pytest.mark.parametrize("keep", [4, 100, 0.5])
def test_a_truncated_adapter(subnet, arc, keep):
    path = arc / "adapters" / "de" / "adapter_model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: keep if keep > 1 else len(content) // 2])
    assert re.search(
        r"adapters/de/adapter_model.safetensors: is .*truncated", refused(subnet, "analyze", arc)
    )


def test_a_corrupt_header(subnet, arc):
    path = arc / "adapters" / "de" / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[8:20] = b"\xff" * 12
    path.write_bytes(content)
    assert "adapter_model.safetensors: has a damaged header" in refused(subnet, "analyze", arc)


def test_an_adapter_of_another_base(subnet, arc):
    config = arc / "adapters" / "ru" / "adapter_config.json"
    config.write_text(config.read_text().replace('"base"', '"xlm-roberta-large"'))
    err = refused(subnet, "analyze", arc)
    assert "xlm-roberta-large" in err
    assert "adapters/ru" in err


def test_adapters_with_disjoint_targets(subnet, arc):
    shutil.rmtree(arc / "adapters" / "de")
    makers.save_adapter(
        makers.lora(makers.bert(), 1, target_modules=["intermediate.dense"]),
        arc / "adapters" / "de",
    )
    err = refused(subnet, "analyze", arc)
    assert "de" in err
    assert "intermediate.dense" in err


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(subnet, arc, value):
    path = arc / "adapters" / "hi" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    tensors[name][0, 0] = value
    save_file(tensors, path, metadata={"format": "pt"})
    err = refused(subnet, "analyze", arc)
    assert name in err
    assert str(value) in err.lower()


def test_a_language_twice(subnet, arc):
    shutil.copytree(arc / "adapters" / "de", arc / "adapters" / "deu_Latn")
    assert "'de' and 'deu_Latn' are the same language (de)" in refused(subnet, "analyze", arc)


def test_a_label_that_is_no_language(subnet, arc):
    scores = arc / "scores.csv"
    scores.write_text(re.sub(r",th,", ",klingonese,", scores.read_text()))
    err = refused(subnet, "analyze", arc)
    assert "'klingonese' is no language code" in err
    assert "scores.csv" in err


@pytest.mark.parametrize(("value", "why"), [("1.7", "1.7"), ("high", "'high'"), ("nan", "nan")])
def test_a_score_that_cannot_be(subnet, arc, value, why):
    text = (arc / "scores.csv").read_text().replace("loss", "accuracy")
    lines = text.splitlines()
    lines[1] = lines[1].rsplit(",", 1)[0] + f",{value}"
    (arc / "scores.csv").write_text("\n".join(lines[:2]) + "\n")
    err = refused(subnet, "analyze", arc)
    assert "scores.csv" in err
    assert why in err


def test_a_stage_without_scores(subnet, arc):
    lines = (arc / "scores.csv").read_text().splitlines()
    (arc / "scores.csv").write_text("\n".join(x for x in lines if not x.startswith("3,")) + "\n")
    err = refused(subnet, "analyze", arc)
    assert "stage 3" in err
    assert "scores.csv" in err


def test_a_pickle_where_safetensors_belongs(subnet, arc):
    folder = arc / "adapters" / "de"
    (folder / "adapter_model.safetensors").unlink()
    torch.save({"x": torch.zeros(1)}, folder / "adapter_model.bin")
    err = refused(subnet, "analyze", arc)
    assert "adapter_model.bin: is a pickle, which can execute code" in err
    assert "save it again with save_pretrained()" in err


def test_a_pickle_that_calls_itself_safetensors(subnet, arc):
    path = arc / "adapters" / "de" / "adapter_model.safetensors"
    torch.save({"x": torch.zeros(1)}, path)
    assert "is a pickle, which can execute code" in refused(subnet, "analyze", arc)


@pytest.mark.parametrize("path", ["../elsewhere", "/etc"])
def test_a_path_that_leaves_the_directory(subnet, arc, path):
    (arc / "subnet.toml").write_text(f'base = "{path}"\n')
    err = refused(subnet, "analyze", arc)
    assert f"subnet.toml: the path '{path}' leaves the directory" in err


def test_an_unknown_setting_names_the_nearest(subnet, arc):
    (arc / "subnet.toml").write_text('ordre = ["de"]\n')
    err = refused(subnet, "analyze", arc)
    assert "ordre" in err
    assert "order" in err


def test_an_output_that_is_there(subnet, arc):
    Path("out").mkdir()
    Path("out/mine.txt").touch()
    left = ("arc", "out")
    assert "--overwrite" in refused(subnet, "analyze", arc, "--out", "out", left=left)
    err = refused(subnet, "analyze", arc, "--out", "out", "--overwrite", left=left)
    assert "holds no run.json" in err
    assert Path("out/mine.txt").is_file()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_that_cannot_be_written(subnet, arc):
    Path("closed").mkdir(mode=0o500)
    err = refused(subnet, "analyze", arc, "--out", "closed/out", left=("arc", "closed"))
    assert "cannot be written" in err


def test_an_output_inside_a_file(subnet, arc):
    Path("file").touch()
    err = refused(subnet, "analyze", arc, "--out", "file/out", left=("arc", "file"))
    assert "cannot be written" in err


@pytest.mark.parametrize("density", ["0", "1.5", "-1", "nan"])
def test_a_density_that_cannot_be(subnet, arc, density):
    assert "density is" in refused(subnet, "analyze", arc, "--density", density)


def test_an_unknown_measure(subnet, arc):
    assert "'jacard'" in refused(subnet, "overlap", arc, "--measure", "jacard")


def test_a_mask_with_a_damaged_payload(subnet, arc):
    subnet("extract", arc, "--out", "masks")
    path = Path("masks/masks/de.safetensors")
    raw = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", raw[:8])
    raw[8 + length :] = np.full(len(raw) - 8 - length, 255, np.uint8).tobytes()
    path.write_bytes(raw)
    err = refused(subnet, "analyze", "masks", left=("arc", "masks"))
    assert "masks/de.safetensors" in err


@pytest.mark.parametrize("command", ["analyze", "extract"])
def test_the_default_output_is_not_put_into_the_checkpoint(subnet, arc, monkeypatch, command):
    before = sorted(path.name for path in arc.iterdir())
    monkeypatch.chdir(arc)
    code, out, err = subnet(command, ".")
    assert code == 2
    assert out == ""
    assert "is inside the directory that is read" in err
    assert "such as " in err
    assert sorted(path.name for path in arc.iterdir()) == before


def test_runs_in_folders_of_one_name_are_extracted(subnet, arc, tmp_path):
    for run in ("one", "two"):
        shutil.copytree(arc, tmp_path / run / "arc")
    code, _, err = subnet("extract", "one/arc", "two/arc", "--out", "masks")
    assert code == 0, err
    assert sorted(path.name for path in (tmp_path / "masks" / "runs").iterdir()) == ["one", "two"]


def test_names_are_not_folded_in_a_pipe(subnet, arc):
    _, out, _ = subnet("relate", "arc", *FAST)
    assert "subspace_similarity_right" in out


@pytest.mark.parametrize(("asked", "calls"), [(None, [1]), ("4", [])])
def test_the_demo_takes_one_thread_unless_told_otherwise(subnet, monkeypatch, arc, asked, calls):
    found = []
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    refused(subnet, "demo", "new", "--out", "arc")  # before any training
    assert found == calls
