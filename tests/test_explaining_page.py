"""The interactive page in a real browser, without a network: its numbers are PyTorch's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from browsing import Tab, chromium, number
from PIL import Image
from torch import nn

from onebyone.comparing import compare
from onebyone.errors import ShapeError
from onebyone.explaining.bench import BLOCKS, START
from onebyone.explaining.explaining import explain
from onebyone.explaining.layers import Shown, show_layers
from onebyone.explaining.photos import ASTRONAUT, built_in, shown
from onebyone.explaining.toy import SIZES, Toy, toy
from onebyone.preprocessing import Preprocess

HOSTILE = "<img src=x onerror=alert(1)>"
CLOSING = "</script><script>alert(2)</script>"


class Net(nn.Module):
    """1×1 convolutions of several kinds, in layers whose names are out to do harm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, stride=2, padding=1)
        parts = {
            HOSTILE: nn.Conv2d(12, 40, 1), "relu": nn.ReLU(inplace=True),
            CLOSING: nn.Conv2d(40, 20, 1, stride=2, bias=False), "last": nn.Conv2d(20, 6, 1, padding=1),
        }  # fmt: skip
        self.body = nn.Sequential()
        for name, module in parts.items():
            self.body.add_module(name, module)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(self.stem(x).relu()).mean((2, 3))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.rand(1, 3, 60, 72, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def path(net: nn.Module, image: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "page.html"
    explain(net, image, file, name=f"{HOSTILE} & {CLOSING}", latency=True)
    return file


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def tab(browser: Any, path: Path) -> Iterator[Tab]:
    opened = Tab(browser, path)
    yield opened
    opened.close()
    assert opened.troubles == []
    assert all(url.startswith(("file:", "about:", "blob:")) for url in opened.requests)


# The numbers


def cells(rng: random.Random, k: int, h: int, w: int, many: int) -> list[tuple[int, int, int]]:
    return [(rng.randrange(k), rng.randrange(h), rng.randrange(w)) for _ in range(many)]


@pytest.mark.parametrize("size", [SIZES[0], SIZES[1], SIZES[4], (7, 3, 9, 3), (64, 56, 56, 2)])
def test_the_sums_of_the_toy_volume_are_those_of_pytorch(
    size: tuple[int, int, int, int], tab: Tab
) -> None:
    c, h, w, k = size
    expected = toy(*size).pointwise()
    query = f"size={c}x{h}x{w}x{k}"
    tab.open(f"1?{query}")
    chosen = cells(random.Random(str(size)), k, h, w, 120)
    states = [
        f"{1 + i % 2}?{query}&x={x}&y={y}&k={m}" for i, (m, y, x) in enumerate(sorted(chosen))
    ]
    states = [s for s in states if s[0] == "1"] + [s for s in states if s[0] == "2"]
    order = [c for i, c in enumerate(sorted(chosen)) if i % 2 == 0]
    order += [c for i, c in enumerate(sorted(chosen)) if i % 2 == 1]
    found = tab.visit(states, "#cell-rows [data-v=result]")
    wanted = [float(expected[cell]) for cell in order]
    assert found == pytest.approx(wanted, abs=1e-5)


def test_the_page_says_what_pytorch_gives_where_it_knows(tab: Tab) -> None:
    for size in SIZES[:3]:
        tab.open("1?size={}x{}x{}x{}&x=1&y=1&k=1".format(*size))
        tab.page.wait_for_selector("#cell-rows [data-v=torch]")
        wanted = float(toy(*size).pointwise()[1, 1, 1])
        assert tab.number("#cell-rows [data-v=torch]") == pytest.approx(wanted, abs=1e-6)
        assert tab.number("#cell-rows [data-v=relu]") == pytest.approx(max(wanted, 0), abs=1e-6)
    tab.open("1?size=5x4x4x2")
    assert tab.page.locator("#cell-rows [data-v=torch]").count() == 0


@pytest.mark.parametrize("size", [SIZES[0], SIZES[1], (5, 7, 4, 3)])
def test_the_siblings_compute_what_pytorch_computes(
    size: tuple[int, int, int, int], tab: Tab
) -> None:
    c, h, w, k = size
    made = toy(*size)
    tab.open("3?size={}x{}x{}x{}".format(*size))
    chosen = cells(random.Random(3), k, h, w, 24)
    states = ["3?size={}x{}x{}x{}".format(*size) + f"&x={x}&y={y}&k={m}" for m, y, x in chosen]
    for kind, wanted in siblings(made, chosen).items():
        assert tab.visit(states, f"#siblings [data-v={kind}]") == pytest.approx(wanted, abs=1e-5)
    assert tab.page.locator("#one-reads").inner_text() == f"{c} cell" + "s" * (c > 1)


def siblings(made: Toy, chosen: list[tuple[int, int, int]]) -> dict[str, list[float]]:
    """What each of the four gives at these cells; the channel of the last two is k modulo C."""
    c, h, w = made.volume.shape
    values: dict[str, list[float]] = {"one": [], "pool": [], "depthwise": [], "full": []}
    for k, y, x in chosen:
        values["one"].append(float(made.pointwise()[k, y, x]))
        pooled = made.pooled()[k % c]
        values["pool"].append(float(pooled[min(y // 2, h // 2 - 1), min(x // 2, w // 2 - 1)]))
        values["depthwise"].append(float(made.each()[k % c, y, x]))
        values["full"].append(float(made.full()[k, y, x]))
    return values


def test_shuffled_pixels_change_the_3x3_alone(tab: Tab) -> None:
    tab.open("2")
    tab.page.click("#shuffle")
    assert tab.number("[data-v=shuffle-one]") == 0
    assert tab.number("[data-v=shuffle-three]") > 0.5


def test_a_layers_sums_are_those_of_pytorch(tab: Tab, net: nn.Module, image: torch.Tensor) -> None:
    layers, notes = show_layers(net, image)
    assert len(layers) == 3
    assert notes == ()
    rng = random.Random(4)
    for index, layer in enumerate(layers):
        k, h, w = layer.output.shape
        chosen = sorted(cells(rng, k, h, w, 150))
        tab.open(f"4?layer=layer{index}")
        states = [f"4?layer=layer{index}&x={x}&y={y}&k={m}" for m, y, x in chosen]
        found = tab.visit(states, "#cell-rows [data-v=result]")
        expected = by_pytorch(net, layer)
        assert found == pytest.approx([float(expected[cell]) for cell in chosen], abs=1e-5)
        shown_too = tab.visit(states[:20], "#cell-rows [data-v=torch]")
        assert shown_too == pytest.approx(found[:20], abs=1e-5)


def by_pytorch(net: nn.Module, layer: Shown) -> torch.Tensor:
    """The layer's own module on the maps that the page has; stride and padding are in them already."""
    module = net.get_submodule(layer.layer)
    assert isinstance(module, nn.Conv2d)
    alone = nn.Conv2d(module.in_channels, module.out_channels, 1, bias=module.bias is not None)
    alone.load_state_dict(module.state_dict())
    with torch.inference_mode():
        return alone(layer.maps.values[None])[0, list(layer.filters)]


def test_the_lessons_weigh_the_colors_of_the_photo(tab: Tab) -> None:
    pixels = shown(*built_in(ASTRONAUT)).pixels.permute(2, 0, 1).float().div(255)
    weight = torch.tensor([[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]])
    expected = nn.functional.conv2d(pixels[None], weight[:, :, None, None])[0]
    chosen = cells(random.Random(5), 3, *pixels.shape[1:], 60)
    tab.open("4?layer=sepia")
    found = tab.visit(
        [f"4?layer=sepia&x={x}&y={y}&k={k}" for k, y, x in chosen], "#cell-rows [data-v=result]"
    )
    assert found == pytest.approx([float(expected[cell]) for cell in chosen], abs=1e-5)
    tab.open("4?x=10&y=10")
    tab.page.get_by_role("button", name="Red alone").click()
    assert tab.number("#cell-rows [data-v=result]") == pytest.approx(
        float(pixels[0, 10, 10]), abs=1e-6
    )


def test_pictures_of_any_shape_stand_at_one_height_and_are_counted(
    net: nn.Module, browser: Any, tmp_path: Path
) -> None:
    takes = Preprocess((3, 60, 72), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    for size, said in (((154, 256), "256 rows × 154 columns"), ((256, 1), "1 row × 256 columns")):
        file = tmp_path / "page.html"
        explain(net, Image.new("RGB", size, "teal"), file, preprocess=takes, latency=False)
        tab = Tab(browser, file, 768).open("4")
        figures = tab.page.locator("#photo figure")
        assert said in figures.first.inner_text()
        tops = [figure.bounding_box()["y"] for figure in figures.all()]
        assert tops == [tops[0]] * 2
        tab.close()
        assert tab.troubles == []


def test_silencing_a_channel_takes_its_product_away(
    tab: Tab, net: nn.Module, image: torch.Tensor
) -> None:
    layer = show_layers(net, image)[0][0]
    tab.open("4?layer=layer0&x=5&y=6&k=2")
    name = tab.page.locator(".inputs li").first.locator("figcaption span").first.inner_text()
    channel = int(name.removeprefix("channel ")) - 1
    tab.page.locator(".inputs li").first.get_by_role("button", name="Silence").click()
    lost = float(layer.weight[2, channel] * layer.maps.values[channel, 6, 5])
    assert tab.number("#cell-rows [data-v=result]") == pytest.approx(
        float(layer.output[2, 6, 5]) - lost, abs=1e-5
    )
    assert tab.number("#cell-rows [data-v=torch]") == pytest.approx(
        float(layer.output[2, 6, 5]), abs=1e-5
    )


def random_blocks(many: int) -> list[dict[str, int]]:
    rng = random.Random(6)
    keys = ("c", "h", "w", "out", "kernel", "stride", "groups", "width")
    found = []
    for _ in range(many):
        c, out = rng.randrange(1, 130), rng.randrange(1, 130)
        stride = rng.choice([1, 1, 2])
        size = [stride * rng.randrange(4, 20) for _ in range(2)]
        kernel, groups = rng.choice([1, 3, 5, 7]), rng.choice([1, 2, 3, 4])
        width = rng.randrange(1, max(c, out) + 1)
        found.append(dict(zip(keys, (c, *size, out, kernel, stride, groups, width), strict=True)))
    return found


def test_the_benchs_costs_are_those_of_compare(tab: Tab) -> None:
    tab.open("5")
    for asked in [START, *random_blocks(12)]:
        tab.open("5?bench=" + ",".join(map(str, asked.values())))
        size = (asked["h"] // asked["stride"], asked["w"] // asked["stride"])
        shapes = (asked["c"], asked["h"], asked["w"]), (asked["out"], *size)
        found = compare(*shapes, asked["kernel"], width=asked["width"], latency=False)
        for name in BLOCKS:
            cells = tab.page.locator(f"[data-variant={name}] [data-is]")
            shown = cells.evaluate_all(
                "all => all.map((td) => [td.dataset.is, Number(td.dataset.v)])"
            )
            if name == "grouped":
                wanted = grouped(shapes, asked)
            else:
                variant = found[name]
                wanted = {
                    "params": variant.params,
                    "macs": variant.macs,
                    "bytes": variant.activation_bytes,
                }
            assert dict(shown) == wanted, (name, asked)
        most = found.break_even.most_macs
        assert tab.number("[data-v=most]") == most, asked


def grouped(shapes: tuple[Any, Any], asked: dict[str, int]) -> dict[str, int]:
    try:
        found = compare(*shapes, asked["kernel"], groups=asked["groups"], latency=False)
        variant = found["grouped"]
    except (ShapeError, KeyError):
        return {}
    return {"params": variant.params, "macs": variant.macs, "bytes": variant.activation_bytes}


def test_the_benchs_code_builds_what_it_counts(tab: Tab) -> None:
    for asked in random_blocks(4):
        tab.open("5?bench=" + ",".join(map(str, asked.values())))
        for name in BLOCKS:
            pick = tab.page.locator(f"[data-variant={name}] button")
            if pick.is_disabled():
                continue
            pick.click()
            scope: dict[str, Any] = {}
            exec(tab.page.locator("#code").inner_text(), scope)
            output = scope["block"](torch.zeros(1, asked["c"], asked["h"], asked["w"]))
            wanted = (asked["out"], asked["h"] // asked["stride"], asked["w"] // asked["stride"])
            assert tuple(output.shape[1:]) == wanted
            params = sum(p.numel() for p in scope["block"].parameters())
            assert params == int(
                pick.locator("xpath=../..").locator("[data-is=params]").get_attribute("data-v")
            )


def test_times_are_shown_for_what_was_measured_alone(tab: Tab) -> None:
    tab.open("5")
    row = tab.page.locator("[data-variant=direct] td").last
    assert row.inner_text().endswith(" ms")
    tab.page.fill("#ask-c", "101")
    assert row.inner_text() == "not measured"


# Moving about


def test_the_whole_tour_by_keyboard_alone(tab: Tab) -> None:
    tab.open("1?x=0&y=0")
    press = tab.page.keyboard.press

    def done() -> None:
        tab.page.wait_for_selector("#tour-goal.done")

    def following(step: int) -> None:
        press("n")
        tab.page.wait_for_selector(f"#tour-count:text-matches('^{step} ')")

    def reach(selector: str) -> None:
        for _ in range(80):
            press("Tab")
            if tab.page.evaluate("s => document.activeElement.matches(s)", selector):
                return
        raise AssertionError(f"{selector} cannot be reached by Tab")

    following(1)
    assert tab.page.locator("#tour-goal.done").count() == 0
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "ArrowRight"):
        press(key)
    done()
    following(2)
    assert tab.page.locator("#tour-goal.done").count() == 0
    decided = next_pixel_that_channel_3_decides()
    move(press, (1, 3), decided)
    done()
    following(3)
    assert tab.page.locator("#tour-goal.done").count() == 0
    press("]")
    press("]")
    done()
    following(4)
    press("Escape")
    tab.page.evaluate("document.activeElement.blur()")
    press("Space")
    done()
    following(5)
    reach("#shuffle")
    press("Space")
    done()
    following(6)
    reach("#sibling-one button")
    press("Enter")
    done()
    following(7)
    reach("#weight-grey-0")
    press("Home")
    assert tab.page.locator("#tour-goal.done").count() == 0
    reach("#photo button:nth-child(2)")
    press("Space")
    done()
    following(8)
    reach("#ask-width")
    press("End")
    done()
    following(9)
    reach(".rows a")
    for _ in range(12):
        if tab.page.locator("#tour-goal.done").count():
            break
        press("ArrowDown")
    done()
    assert tab.page.locator("#tour-dots i.done").count() == 9
    press("n")
    assert not tab.page.locator("#tour").is_visible()


def next_pixel_that_channel_3_decides() -> tuple[int, int]:
    made = toy(*SIZES[0])
    products = (made.volume * made.weight[0][:, None, None]).abs()
    others = torch.cat([products[:2], products[3:]]).amax(0)
    y, x = (products[2] > others).nonzero()[0].tolist()
    return y, x


def move(press: Any, start: tuple[int, int], end: tuple[int, int]) -> None:
    for distance, keys in ((end[0] - start[0], "Up Down"), (end[1] - start[1], "Left Right")):
        less, more = keys.split()
        for _ in range(abs(distance)):
            press(f"Arrow{more if distance > 0 else less}")


def test_the_state_lives_in_the_address(tab: Tab) -> None:
    tab.open("1")
    for key in ("ArrowLeft", "ArrowDown", "]", "Enter"):
        tab.page.keyboard.press(key)
    said = tab.page.locator("#cell-title").inner_text()
    tab.page.wait_for_url("**pin=1**")
    tab.open(tab.page.evaluate("location.hash.slice(1)"))
    assert tab.page.locator("#cell-title").inner_text() == said
    assert tab.page.locator("#pinned").is_visible()
    tab.page.keyboard.press("Escape")
    assert not tab.page.locator("#pinned").is_visible()


def test_hovering_previews_and_clicking_pins(tab: Tab) -> None:
    tab.open("1")
    box = tab.page.locator("#pixel .map canvas").bounding_box()
    assert box is not None

    def at(x: int, y: int) -> tuple[float, float]:
        return box["x"] + box["width"] * (x + 0.5) / 5, box["y"] + box["height"] * (y + 0.5) / 5

    tab.page.mouse.move(*at(4, 0))
    assert tab.page.locator("#cell-title").inner_text().startswith("Row 1, column 5")
    tab.page.mouse.click(*at(1, 3))
    tab.page.mouse.move(*at(2, 2))
    assert tab.page.locator("#cell-title").inner_text().startswith("Row 4, column 2")
    tab.page.keyboard.press("Escape")
    tab.page.mouse.move(*at(0, 0))
    assert tab.page.locator("#cell-title").inner_text().startswith("Row 1, column 1")


def test_a_pointer_on_a_slice_of_the_volume_finds_its_pixel(tab: Tab) -> None:
    tab.open("1?x=0&y=0")
    front = tab.page.locator("#pixel .scene canvas").last.bounding_box()
    assert front is not None
    # The front slice lies before all others, so its middle is its middle pixel.
    tab.page.mouse.move(front["x"] + front["width"] / 2, front["y"] + front["height"] / 2)
    assert tab.page.locator("#cell-title").inner_text().startswith("Row 3, column 3")


@pytest.mark.parametrize("size", ["6x5x5x4", "64x9x9x2"])
def test_the_pixel_under_the_pointer_is_the_one_that_is_outlined(size: str, tab: Tab) -> None:
    tab.open(f"1?size={size}&x=3&y=2")
    box = tab.page.locator("#pixel .column path").last.bounding_box()
    assert box is not None
    tab.open(f"1?size={size}&x=0&y=0")
    tab.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert tab.page.locator("#cell-title").inner_text().startswith("Row 3, column 4,")


def test_the_cursor_keeps_its_place_in_the_picture(tab: Tab) -> None:
    tab.open("1?x=4&y=0")
    tab.page.keyboard.press("4")
    tab.page.wait_for_selector("#screen-4:not([hidden]) .frame")
    row, column = tab.page.locator("#cell-title").inner_text().split(",")[:2]
    assert int(row.split()[1]) <= 192 / 5
    assert int(column.split()[1]) >= 256 * 4 / 5


def test_with_reduced_motion_playing_takes_one_step_at_a_time(browser: Any, path: Path) -> None:
    tab = Tab(browser, path, reduced_motion="reduce")
    tab.open("1")
    tab.page.keyboard.press("Space")
    later = tab.page.locator("#pixel .later")
    first = later.count()
    assert first > 3
    tab.page.wait_for_timeout(120)
    assert later.count() == first
    tab.page.keyboard.press("Space")
    assert later.count() < first
    for _ in range(12):
        tab.page.keyboard.press("Space")
        if not later.count():
            break
    assert later.count() == 0
    tab.close()
    assert tab.troubles == []


# For everybody


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1440, "light")])
def test_no_screen_has_an_accessibility_violation_or_scrolls_sideways(
    browser: Any, path: Path, width: int, scheme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    tab = Tab(browser, path, width, color_scheme=scheme)
    for state in ("1?tour=2", "2", "3", "4", "4?layer=layer0", "5", "6"):
        tab.open(state)
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= width, state
        found = axe.run(tab.page).response["violations"]
        told = [(v["id"], [node["html"][:160] for node in v["nodes"][:3]]) for v in found]
        assert told == [], state
    tab.close()
    assert tab.troubles == []


def test_hostile_names_are_shown_as_text(tab: Tab) -> None:
    for state in ("1", "4?layer=layer0", "4?layer=layer1"):
        tab.open(state)
        assert tab.page.locator("img, iframe, script[src]").count() == 0
        assert HOSTILE in tab.page.locator(".eyebrow code").inner_text()
    options = tab.page.locator("#what").inner_text()
    assert HOSTILE in options
    assert CLOSING in options


def test_states_that_make_no_sense_are_passed_over(tab: Tab) -> None:
    for state in (
        "9?x=-3&y=a&k=99999",
        "1?size=0x0x0x0",
        "1?size=axb",
        "4?layer=layer77",
        "5?bench=,,a,1e9",
        "%3C",
    ):
        tab.open(state)
        assert tab.page.locator("section[id^=screen]:visible").count() == 1
        assert "NaN" not in tab.page.locator("#app").inner_text()


def test_the_table_of_layers_sorts_and_exports(tab: Tab) -> None:
    tab.open("6")
    tab.page.locator("#layer-table thead button", has_text="before").first.click()
    with tab.page.expect_download() as waiting:
        tab.page.click("#csv")
    lines = Path(waiting.value.path()).read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("#,layer,was,becomes")
    macs = [number(line.split(",")[-8]) for line in lines[1:]]
    assert len(macs) == tab.page.locator("#layer-table tbody tr").count()
    assert macs == sorted(macs, reverse=True)
