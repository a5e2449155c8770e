"""measure, compare and diff on the command line: inputs are spared, every option says something."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor, nn
from typer import BadParameter
from typer.testing import CliRunner

from onebyone.cli import values
from onebyone.cli.app import app
from onebyone.cli.reading import read_model
from onebyone.errors import ModelError
from onebyone.report.columns import Column, FittedTable

NETS = """
import torch
from torch import nn
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2)), torch.zeros(1, 3, 3, 3)
class Given(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 6)
    def forward(self, given):
        return {"y": self.layer(given["x"] if isinstance(given, dict) else given[0])}
def a_dict():
    return Given(), {"x": torch.zeros(1, 4)}
def dict_in_tuple():
    return Given(), ({"x": torch.zeros(1, 4)},)
def a_list():
    return Given(), [torch.zeros(1, 4)]
def list_in_tuple():
    return Given(), ([torch.zeros(1, 4)],)
def tuple_in_tuple():
    return Given(), ((torch.zeros(1, 4), 3),)
def odd():
    return Given(), {"x": 3}
"""
GIVEN = ("a_dict", "dict_in_tuple", "a_list", "list_in_tuple", "tuple_in_tuple")


class Pairs(nn.Module):
    """Takes two images and nothing else."""

    def forward(self, x: Tensor) -> Tensor:
        one, other = x.unbind(0)
        return one + other


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a module, a program, weights, a folder and links."""
    monkeypatch.chdir(tmp_path)
    Path("cli_nets.py").write_text(NETS)
    conv = nn.Conv2d(3, 4, 3)
    image = torch.zeros(1, 3, 8, 8)
    torch.export.save(torch.export.export(conv.eval(), (image,)), "m.pt2")
    space: dict[str, Any] = {}
    exec(NETS, space)
    save_file(space["net"]()[0].state_dict(), "w.safetensors")
    Path("link.pt2").symlink_to("m.pt2")
    Path("out").mkdir()
    Path("out/plan.json").write_text('{"schema": "onebyone.plan/1"}')
    yield tmp_path
    sys.modules.pop("cli_nets", None)


def call(line: str) -> Result:
    return CliRunner().invoke(app, line.split())  # type: ignore[return-value]


def said(result: Result) -> str:
    """The message on one line, without its frame."""
    return re.sub(r"\s+", " ", result.stderr.replace("│", " "))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }


# An output never replaces an input


@pytest.mark.parametrize(
    ("line", "lost"),
    [
        ("measure m.pt2 --json m.pt2", "m.pt2"),
        ("measure m.pt2 --csv ./out/../m.pt2", "m.pt2"),
        ("measure m.pt2 --html link.pt2", "m.pt2"),
        ("measure link.pt2 --html m.pt2", "link.pt2"),
        ("measure cli_nets:net --weights w.safetensors --csv w.safetensors", "w.safetensors"),
        ("measure cli_nets:net --csv cli_nets.py", "cli_nets.py"),
        ("measure out --json out/plan.json", "out/plan.json"),
        ("diff m.pt2 link.pt2 --json m.pt2", "m.pt2"),
        ("diff cli_nets:net m.pt2 --markdown m.pt2", "m.pt2"),
        ("diff demo cli_nets:net --weights-b w.safetensors --html w.safetensors", "w.safetensors"),
        ("diff cli_nets:net demo --weights-a w.safetensors --csv w.safetensors", "w.safetensors"),
        (
            "slim demo --data demo --plan-only --macs 0.5 --held-out h.json --force -o h.json",
            "h.json",
        ),
    ],
)
def test_an_output_never_replaces_an_input(place: Path, line: str, lost: str) -> None:
    Path("h.json").write_text("precious")
    before = contents(place)
    result = call(line)
    assert result.exit_code == 2
    assert f"would replace {lost}, which this command reads: give another file" in said(result)
    assert "Traceback" not in result.stderr
    assert contents(place) == before


def test_other_files_are_replaced(place: Path) -> None:
    for name in ("out/costs.json", "costs.json", "costs.json"):
        result = call(f"measure cli_nets:net --json {name}")
        assert result.exit_code == 0, result.stderr
        assert json.loads(Path(name).read_text(encoding="utf-8"))["model"] == "cli_nets:net"


@pytest.mark.parametrize("twin", ["./a.json", "out/../a.json", "linked.json"])
def test_two_outputs_are_not_one_file(place: Path, twin: str) -> None:
    Path("linked.json").symlink_to("a.json")
    result = call(f"measure cli_nets:net --json a.json --csv {twin}")
    assert result.exit_code == 2
    assert f"{twin} is given for two kinds of output" in said(result)
    assert not Path("a.json").exists()


# Options


@pytest.mark.parametrize(
    "line",
    [
        "measure demo --latency",
        "compare 8x6x6 8x6x6",
        "slim demo --data demo --macs 0.5 -o out",
        "verify out --data demo",
    ],
)
def test_threads_that_no_machine_has(place: Path, line: str) -> None:
    most = max(256, 4 * (os.cpu_count() or 1))
    result = call(f"{line} --threads {most + 1}")
    assert result.exit_code == 2
    assert f"give {most} at most" in said(result)


def test_as_many_threads_as_there_may_be() -> None:
    result = call(
        f"compare 8x6x6 8x6x6 --no-latency --threads {max(256, 4 * (os.cpu_count() or 1))}"
    )
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize(
    "text", ["3x2²x16", "3x٣x16", "3x0x16", f"3x{'9' * 5000}x16", "3x-1x16", ""]
)
def test_what_is_no_length(text: str) -> None:
    with pytest.raises(BadParameter, match=r"is no size: give 3x224x224 or 3x16x224x224$"):
        values.lengths(text, "--input", (3, 4))


def test_lengths_of_up_to_four_axes() -> None:
    assert values.lengths("7", "--input", (1, 2, 3, 4)) == (7,)
    assert values.lengths("3 x 16×224,224", "--input", (1, 2, 3, 4)) == (3, 16, 224, 224)


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("measure demo --input 1x10000000x10000000", "give a smaller --input or a smaller --batch"),
        ("measure demo --input 1x1{0}x1{0}", "give a smaller --input or a smaller --batch"),
        ("measure demo --batch 2000000000", "give a smaller --input or a smaller --batch"),
        ("diff demo demo --input 1x10000000x10000000", "give a smaller --input"),
    ],
)
def test_advice_on_memory_names_options_that_there_are(
    line: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "--batch" in line:  # what some machines may have

        def fail(*args: Any, **kwargs: Any) -> None:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:115] can't allocate memory")

        monkeypatch.setattr("onebyone.measurement.measuring.measure", fail)
    result = call(line.format("0" * 17))
    assert result.exit_code == 2, result.stderr
    assert f"there is not enough memory: {advice}. The system says: " in said(result)


@pytest.mark.parametrize(("command", "has"), [("compare", "--no-latency"), ("demo", "")])
def test_advice_on_memory_elsewhere(
    command: str, has: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("onebyone.comparing.compare", fail)
    monkeypatch.setattr("onebyone.slimming.slim", fail)
    result = call({"compare": "compare 8x6x6 8x6x6", "demo": "demo"}[command])
    assert result.exit_code == 2
    assert "there is not enough memory: " in said(result)
    assert has in said(result)
    assert "--memory" not in said(result)
    assert "--images" not in said(result)


@pytest.mark.parametrize(
    ("options", "option", "message"),
    [
        ("--device cpu", "--device", "it needs --latency"),
        ("--device nope", "--device", "it needs --latency"),
        ("--compile", "--compile", "it needs --latency"),
        ("--training", "--training", "it needs --latency"),
        ("--sort time", "--sort time", "it needs --latency"),
        ("--tree --sort macs", "--tree", "it shows every layer in order, so leave --sort out"),
        ("--tree --top 3", "--tree", "it shows every layer in order, so leave --top out"),
        ("--dtype int8", "--dtype", "float32, bfloat16, float16, float64"),
        ("--batch 99999999999999999999", "--batch", "2147483647"),
    ],
)
def test_no_option_is_left_out_in_silence(options: str, option: str, message: str) -> None:
    result = call(f"measure demo {options}")
    assert result.exit_code == 2
    assert f"Invalid value for '{option}'" in said(result) or f"value for {option}:" in said(result)
    assert message in said(result)


def test_every_type_that_is_taken_is_in_the_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert "float64" in call("measure --help").stdout
    assert call("measure demo --dtype float64 --json -").exit_code == 0


def test_a_size_counts_also_where_the_network_brings_its_own(place: Path) -> None:
    result = call("diff demo demo --input 1x32x32 --json -")
    assert json.loads(result.stdout)["layers"][0]["before"]["input_shape"] == [1, 1, 32, 32]


@pytest.mark.parametrize("command", ["measure pairs.pt2", "diff pairs.pt2 pairs.pt2"])
def test_a_size_keeps_the_type_and_the_batch_of_the_network(place: Path, command: str) -> None:
    image = torch.zeros(2, 3, 8, 8, dtype=torch.float64)
    conv = nn.Sequential(nn.Conv2d(3, 4, 3), Pairs()).double().eval()
    torch.export.save(torch.export.export(conv, (image,)), "pairs.pt2")
    result = call(f"{command} --input 3x8x8 --json -")
    assert result.exit_code == 0, result.stderr
    assert "[2, 3, 8, 8]" in result.stdout


# Inputs that are no tensors


@pytest.mark.parametrize("name", GIVEN)
def test_a_factory_may_give_whatever_its_network_takes(place: Path, name: str) -> None:
    result = call(f"measure cli_nets:{name} --json -")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["macs"] == 24
    compared = call(f"diff cli_nets:{name} cli_nets:a_dict --json -")
    assert compared.exit_code == 0, compared.stderr
    assert json.loads(compared.stdout)["after"]["macs"] == 24


@pytest.mark.parametrize(
    ("name", "kind"), [*zip(GIVEN, ("dict", "dict", "list", "list", "tuple"), strict=True)]
)
def test_images_are_one_tensor(place: Path, name: str, kind: str) -> None:
    with pytest.raises(ModelError, match=f"takes a {kind}: a batch of images is one tensor"):
        read_model(f"cli_nets:{name}", None, None, False)
    result = call(f"slim cli_nets:{name} --data demo --macs 0.5 -o new")
    assert result.exit_code == 2
    takes = {"dict": "given.x 4", "list": "given[0] 4", "tuple": "a tuple"}[kind]
    assert f"takes {takes}" in said(result)


def test_an_example_without_a_tensor(place: Path) -> None:
    result = call("measure cli_nets:odd")
    assert result.exit_code == 2
    assert "gave a module and a dict without a tensor, not an example tensor" in said(result)


# Tables


def test_a_table_shows_every_text_as_it_is() -> None:
    names = ["[/b]", "[bold]x", ":smile:", "[link=a]"]
    table = FittedTable(
        names, (Column[str]("[b]layer", lambda n: n), Column[str]("[i]", lambda n: f"[red]{n}")),
        total="[/total]",
    )  # fmt: skip
    console = Console(width=60, file=io.StringIO())
    console.print(table)
    lines = [line.split() for line in console.file.getvalue().splitlines() if line.strip()]  # type: ignore[attr-defined]
    rows = [line for line in lines if set(line[0]) != {"─"}]
    assert rows == [["[b]layer", "[i]"], *([n, f"[red]{n}"] for n in [*names, "[/total]"])]


def name_layers(*names: str) -> None:
    """A network `named` in the module, of a layer for each name."""
    Path("cli_nets.py").write_text(
        NETS + "def named():\n    model = nn.Sequential()\n"
        f"    for name in {names!a}:\n        model.add_module(name, nn.Conv2d(3, 3, 1))\n"
        "    return model, torch.zeros(1, 3, 4, 4)\n"
    )


def test_layers_whose_names_look_like_markup(place: Path) -> None:
    name_layers("[/b]", "[bold]x")
    result = call("measure cli_nets:named")
    assert result.exit_code == 0, result.stderr
    assert "[/b]" in result.stdout
    assert "[bold]x" in result.stdout


def test_the_example_of_what_was_loaded(place: Path) -> None:
    loaded = read_model("cli_nets:net", None, None, False)
    assert loaded.inputs[0] is loaded.example
    assert isinstance(loaded.example, Tensor)


def test_a_drawn_input_has_the_type_of_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "double_net.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Conv2d(3, 4, 1).double()\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["measure", "double_net:net", "--input", "3x5x5", "--json", "-"])
    assert (done.exit_code, json.loads(done.stdout)["macs"]) == (0, 300)


@pytest.mark.parametrize(
    "where",
    [
        "def net():\n    sys.exit(0)\n",
        "class Net(nn.Module):\n    def forward(self, x):\n        sys.exit(3)\n"
        "def net():\n    return Net()\n",
    ],
)
@pytest.mark.parametrize("command", ["measure", "bench"])
def test_a_network_that_ends_the_program(place: Path, where: str, command: str) -> None:
    Path("cli_nets.py").write_text(f"import sys\nfrom torch import nn\n{where}")
    result = call(f"{command} cli_nets:net --input 3x4x4 --json out.json")
    assert result.exit_code == 2
    assert "the network's own code ended the command (sys.exit(" in said(result)
    assert not Path("out.json").exists()


def test_names_of_layers_and_files_that_are_no_text(place: Path) -> None:
    name_layers("a\x1b[31m", "b\udcff")
    result = call("measure cli_nets:named --json out.json --csv out.csv --html out.html")
    assert result.exit_code == 0, result.stderr
    assert "\x1b" not in result.stdout
    assert "a\N{REPLACEMENT CHARACTER}[31m" in result.stdout
    names = [layer["name"] for layer in json.loads(Path("out.json").read_text())["layers"]]
    assert "b\udcff" in names


def test_an_empty_name_of_a_file(place: Path) -> None:
    result = CliRunner().invoke(app, ["measure", "m.pt2", "--json", ""])
    assert result.exit_code == 2
    assert "the name of a file to write is empty" in said(result)  # type: ignore[arg-type]
