"""Images from every kind of data, and the data that must be refused."""

import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from onebyone import folders
from onebyone.data import DEMO_PREPROCESS, Images, check_held_out, check_images, open_images
from onebyone.errors import DataError
from onebyone.preprocessing import Preprocess

RGB = Preprocess((3, 8, 8), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
GRAY = Preprocess((1, 8, 8), (0.5,), (0.25,))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def class_folder(tmp_path: Path) -> Path:
    """Nine pictures in three class folders; a picture's gray value tells which it is."""
    for k, name in enumerate(("cat", "bird", "dog")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for n in range(3):
            image = Image.new("RGB", (8, 8), (20 * (3 * k + n),) * 3)
            image.save(tmp_path / "data" / name / f"{n}.png")
    return tmp_path / "data"


def grays(images: Images) -> list[int]:
    """The gray value of each picture, undone from the normalization."""
    value = images.inputs[:, 0, 0, 0] * RGB.std[0] + RGB.mean[0]
    return value.mul(255).round().int().tolist()


class TestTensorsAndArrays:
    def test_floats_are_taken_as_they_are(self) -> None:
        x = random(5, 3, 8, 8)
        for data in (x, x.numpy(), x.double(), x.numpy().astype(">f8")):
            images = open_images(data, RGB)
            torch.testing.assert_close(images.inputs, x, rtol=0, atol=0)
            assert images.labels is None
        assert open_images(x.half()).inputs.dtype == torch.float32

    @pytest.mark.parametrize("layout", ["nchw", "nhwc", "tensor"])
    def test_uint8_is_normalized(self, layout: str) -> None:
        raw = pixels(4, 3, 8, 8)
        data: Any = {
            "nchw": raw,
            "nhwc": raw.transpose(0, 2, 3, 1),
            "tensor": torch.from_numpy(raw),
        }[layout]
        expected = np.stack(
            [(raw[:, c] / 255 - RGB.mean[c]) / RGB.std[c] for c in range(3)], axis=1
        )
        images = open_images(data, RGB)
        torch.testing.assert_close(images.inputs, torch.from_numpy(expected).float())

    def test_gray_pictures_without_a_channel_axis(self) -> None:
        raw = pixels(4, 8, 8)
        expected = torch.from_numpy((raw / 255 - 0.5) / 0.25).float()[:, None]
        torch.testing.assert_close(open_images(raw, GRAY).inputs, expected)

    def test_labels(self) -> None:
        x, y = random(5, 3, 8, 8), [0, 3, 1, 2, 1]
        for labels in (y, np.array(y, np.uint8), np.array(y, np.uint16), torch.tensor(y)):
            images = open_images((x, labels))
            assert images.labels is not None
            assert images.labels.tolist() == y
            assert images.labels.dtype == torch.int64

    @pytest.mark.parametrize("shape", [(4, 3, 16), (4, 3, 2, 8, 8)])
    def test_other_numbers_of_axes(self, shape: tuple[int, ...]) -> None:
        assert open_images(random(*shape)).inputs.shape == shape

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), "--mean"),
            (np.zeros((4, 3, 8, 8), dtype=np.uint8), "--mean"),
            (torch.zeros(4, 3, 8, 8, dtype=torch.int64), "int64"),
            (torch.zeros(4, 3, 8, 8, dtype=torch.bool), "bool"),
            (np.array(["a", "b"]), "no array of images"),
            (torch.zeros(0, 3, 8, 8), "at least one image"),
            (torch.zeros(8, 8), "shape"),
            ((torch.zeros(4, 3, 8, 8), torch.zeros(3, dtype=torch.int64)), "4 images"),
            ((torch.zeros(4, 3, 8, 8), torch.zeros(4)), "class numbers"),
            ((torch.zeros(2, 3, 8, 8), torch.tensor([0, -1])), "start at 0"),
            (
                (torch.zeros(4, 3, 8, 8), torch.zeros(4, 1, dtype=torch.int64)),
                r"labels of shape \(4, 1\)",
            ),
            ((torch.zeros(4, 3, 8, 8), torch.eye(4)), r"labels of shape \(4, 4\)"),
            (7, "int is no data"),
            ({"a": 1}, "dict is no data"),
            ([], "no batch"),
            ("no/such/folder", "does not exist"),
        ],
    )
    def test_refusals(self, data: Any, message: str) -> None:
        with pytest.raises(DataError, match=message):
            open_images(data)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_not_finite(self, value: float) -> None:
        x = random(5, 3, 8, 8)
        x[3, 0, 2, 2] = value
        with pytest.raises(DataError, match=r"1 of 5 .*number 3"):
            open_images(x)

    def test_wrong_channels_of_uint8(self) -> None:
        with pytest.raises(DataError, match="3 channels"):
            open_images(pixels(4, 1, 8, 8), RGB)

    def test_the_argument_is_not_changed(self) -> None:
        raw = pixels(4, 3, 8, 8)
        before = raw.copy()
        open_images(raw, RGB)
        assert np.array_equal(raw, before)


class TestSubsets:
    def test_limit_is_random_and_repeatable(self) -> None:
        x = torch.arange(100.0).view(100, 1, 1, 1)
        a, b, c = (open_images((x, x.flatten().long()), limit=10, seed=s) for s in (1, 1, 2))
        assert a.labels is not None
        assert torch.equal(a.inputs, b.inputs)
        assert not torch.equal(a.inputs, c.inputs)
        assert len(set(a.labels.tolist())) == 10
        assert a.labels.tolist() == a.inputs.flatten().tolist()
        assert len(open_images(x, limit=1000)) == 100

    @pytest.mark.parametrize(("held_out", "n"), [(7, 7), (0.25, 25), (0.001, 1)])
    def test_split_parts_all(self, held_out: float, n: int) -> None:
        images = open_images(torch.arange(100.0).view(100, 1, 1, 1))
        rest, held = images.split(held_out, seed=3)
        assert len(held) == n
        together = [*rest.inputs.flatten().tolist(), *held.inputs.flatten().tolist()]
        assert sorted(together) == list(range(100))
        assert torch.equal(held.inputs, images.split(held_out, seed=3)[1].inputs)

    @pytest.mark.parametrize("held_out", [0, 4, 5, 1.0, 0.0])
    def test_split_leaves_images_on_both_sides(self, held_out: float) -> None:
        with pytest.raises(DataError, match="held out"):
            open_images(random(4, 1, 2, 2)).split(held_out)

    def test_batches(self) -> None:
        images = open_images((random(10, 1, 2, 2), range_labels(10)))
        parts = list(images.batches(4))
        assert [len(x) for x, _ in parts] == [4, 4, 2]
        torch.testing.assert_close(torch.cat([x for x, _ in parts]), images.inputs)
        assert [int(i) for _, y in parts if y is not None for i in y] == list(range(10))

    @pytest.mark.parametrize("kind", ["f2", "f4", "f8"])
    @pytest.mark.parametrize("order", "<>")
    def test_byte_order_does_not_matter(self, kind: str, order: str, tmp_path: Path) -> None:
        values, classes = np.random.default_rng(0).normal(size=(6, 1, 2, 2)), np.arange(6) % 3
        inputs, labels = values.astype(order + kind), classes.astype(f"{order}i4")
        np.savez(tmp_path / "a.npz", images=inputs, labels=labels)
        for given in ((inputs, labels), str(tmp_path / "a.npz")):
            images = open_images(given)
            assert images.labels is not None
            assert images.labels.tolist() == [0, 1, 2, 0, 1, 2]
            assert np.array_equal(images.inputs.numpy(), values.astype(kind).astype("f4"))

    def test_sparse_and_nested_tensors_are_told(self) -> None:
        x = random(4, 1, 2, 2)
        for given in (x.to_sparse(), (x.to_sparse(), range_labels(4))):
            with pytest.raises(DataError, match=r"layout torch.sparse_coo: .*to_dense"):
                open_images(given)
        with pytest.raises(DataError, match="a nested tensor"):
            open_images(torch.nested.nested_tensor(list(x), layout=torch.jagged))
        with pytest.raises(DataError, match=r"layout torch.sparse_coo"):
            Images(x.to_sparse())

    @pytest.mark.parametrize("limit", [0, -1])
    def test_no_images_wanted(self, limit: int) -> None:
        with pytest.raises(DataError, match="at least 1"):
            open_images(random(4, 1, 2, 2), limit=limit)


def range_labels(n: int) -> Tensor:
    return torch.arange(n)


class TestFiles:
    def test_npy(self, tmp_path: Path) -> None:
        x = random(4, 3, 8, 8)
        np.save(tmp_path / "x.npy", x.numpy())
        torch.testing.assert_close(open_images(tmp_path / "x.npy").inputs, x)

    @pytest.mark.parametrize(("images", "labels"), [("images", "labels"), ("x", "y")])
    def test_npz(self, tmp_path: Path, images: str, labels: str) -> None:
        x = random(4, 3, 8, 8)
        np.savez(tmp_path / "d.npz", **{images: x.numpy(), labels: np.arange(4)})
        found = open_images(str(tmp_path / "d.npz"))
        torch.testing.assert_close(found.inputs, x)
        assert found.labels is not None
        assert found.labels.tolist() == [0, 1, 2, 3]

    def test_refusals(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "other.npz", pictures=np.zeros(3))
        with pytest.raises(DataError, match=r"pictures.*`images`"):
            open_images(tmp_path / "other.npz")
        (tmp_path / "bad.npy").write_bytes(b"nothing")
        with pytest.raises(DataError, match="cannot be read"):
            open_images(tmp_path / "bad.npy")
        np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
        with pytest.raises(DataError, match="cannot be read"):
            open_images(tmp_path / "objects.npy")
        (tmp_path / "a.txt").write_text("hello")
        with pytest.raises(DataError, match="neither a folder"):
            open_images(tmp_path / "a.txt")


class TestFolders:
    def test_labels_by_sorted_folder(self, class_folder: Path) -> None:
        images = open_images(class_folder, RGB)
        assert images.labels is not None
        order = {"bird": 0, "cat": 1, "dog": 2}
        by_gray = [order[n] for n in ("cat", "bird", "dog")]
        assert images.labels.tolist() == [by_gray[g // 60] for g in grays(images)]
        assert sorted(grays(images)) == [20 * n for n in range(9)]

    def test_labels_by_the_networks_classes(self, class_folder: Path) -> None:
        images = open_images(class_folder, RGB, classes=("Dog", "fish", "CAT", "bird"))
        assert images.labels is not None
        assert images.labels.tolist() == [(2, 3, 0)[g // 60] for g in grays(images)]

    def test_other_classes_give_no_labels(self, class_folder: Path) -> None:
        images = open_images(class_folder, RGB, classes=("a", "b"))
        assert images.labels is None
        assert "not named like the network's 2 classes" in images.notes[0]

    def test_an_empty_class_folder_leaves_no_labels_as_it_would_shift_them(
        self, class_folder: Path
    ) -> None:
        (class_folder / "ape").mkdir()
        (class_folder / ".cache").mkdir()
        images = open_images(class_folder, RGB)
        assert images.labels is None
        assert "the folder 'ape'" in images.notes[0]
        named = open_images(class_folder, RGB, classes=("Dog", "fish", "CAT", "bird"))
        assert named.labels is not None
        (class_folder / "ape").rmdir()
        assert open_images(class_folder, RGB).labels is not None

    @pytest.mark.parametrize(("mode", "most"), [("F", 1.0), ("F", 255.0), ("I", 255), ("I", 65535)])
    def test_gray_pictures_of_floating_point_and_of_32_bits(
        self, mode: str, most: float, tmp_path: Path
    ) -> None:
        ramp = np.linspace(0, most, 256)[None].repeat(8, 0)
        picture = Image.fromarray(ramp.astype(np.float32 if mode == "F" else np.int32))
        assert picture.mode == mode
        picture.save(tmp_path / "a.tiff")
        shape = Preprocess((1, 8, 256), (0.0,), (1.0,))
        found = open_images(tmp_path, shape).inputs[0, 0]
        wanted = torch.linspace(0, 1, 256).expand(8, 256)
        torch.testing.assert_close(found, wanted, atol=0.01, rtol=0)

    def test_pictures_with_what_is_no_number_are_left_out(self, tmp_path: Path) -> None:
        for name, value in (("a", 0.5), ("b", np.nan)):
            values = np.full((8, 8), value, np.float32)
            Image.fromarray(values).save(tmp_path / f"{name}.tiff")
        found = open_images(tmp_path, GRAY)
        assert len(found) == 1
        assert "NaN or infinite" in found.skipped[0]
        assert "b.tiff" in found.skipped[0]

    def test_names_that_folders_cannot_have(self, tmp_path: Path) -> None:
        for name in ("t-shirt_top", "ankle-boot"):
            (tmp_path / name).mkdir()
            Image.new("L", (8, 8)).save(tmp_path / name / "a.png")
        images = open_images(tmp_path, GRAY, classes=("bag", "ankle boot", "t-shirt/top"))
        assert images.labels is not None
        assert sorted(images.labels.tolist()) == [1, 2]

    def test_flat_and_nested_folders(self, class_folder: Path) -> None:
        assert open_images(class_folder / "cat", RGB).labels is None
        Image.new("RGB", (8, 8)).save(class_folder / "loose.png")
        images = open_images(class_folder, RGB)
        assert images.labels is None
        assert len(images) == 10
        assert "outside its class folders" in images.notes[0]

    def test_unreadable_files_are_named(self, class_folder: Path) -> None:
        (class_folder / "cat" / "bad.jpg").write_bytes(b"no picture")
        whole = (class_folder / "dog" / "0.png").read_bytes()
        (class_folder / "dog" / "cut.png").write_bytes(whole[: len(whole) // 2])
        (class_folder / "notes.txt").write_text("not counted")
        images = open_images(class_folder, RGB)
        assert len(images) == 9
        assert sorted(s.split(":")[0].rsplit("/", 1)[1] for s in images.skipped) == [
            "bad.jpg",
            "cut.png",
        ]
        # what cannot be read is made up for by other files
        assert len(open_images(class_folder, RGB, limit=9)) == 9

    def test_links_to_nothing_are_named(self, class_folder: Path) -> None:
        (class_folder / "cat" / "gone.png").symlink_to(class_folder / "nowhere.png")
        (class_folder / "folder.png").symlink_to(class_folder / "dog")
        images = open_images(class_folder, RGB)
        assert len(images) == 9
        assert [s.split(":")[0].rsplit("/", 1)[1] for s in images.skipped] == ["gone.png"]

    @pytest.mark.parametrize("limit", [None, 4])
    def test_large_pictures_are_nothing_to_warn_of(
        self, limit: int | None, class_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8 * 8 - 1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert len(open_images(class_folder, RGB, limit=limit)) == (limit or 9)

    def test_none_left(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="holds no image"):
            open_images(tmp_path, RGB)
        (tmp_path / "bad.png").write_bytes(b"no picture")
        with pytest.raises(DataError, match=r"none of the 1 .*bad\.png"):
            open_images(tmp_path, RGB)

    def test_normalization_is_never_guessed(self, class_folder: Path) -> None:
        with pytest.raises(DataError, match=r"--size.*--mean.*--std"):
            open_images(class_folder)

    def test_no_more_is_decoded_than_needed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for n in range(300):
            Image.new("L", (8, 8), n % 256).save(tmp_path / f"{n:03}.png")
        read: list[Path] = []
        original = folders._read

        def counted(file: Path, preprocess: Preprocess) -> Tensor | str:
            read.append(file)
            return original(file, preprocess)

        monkeypatch.setattr(folders, "_read", counted)
        a, b = (open_images(tmp_path, GRAY, limit=10, seed=s) for s in (0, 0))
        assert len(read) == 20
        torch.testing.assert_close(a.inputs, b.inputs)
        assert not torch.equal(a.inputs, open_images(tmp_path, GRAY, limit=10, seed=1).inputs)


class TestIterables:
    def test_kinds_of_batches(self) -> None:
        x, y = random(6, 3, 4, 4), torch.arange(6)
        halves = [(x[:3], y[:3]), (x[3:], y[3:])]
        for data in (
            DataLoader(TensorDataset(x, y), batch_size=4),
            halves,
            [{"image": a, "label": b} for a, b in halves],
            ([a.numpy(), b.numpy()] for a, b in halves),
            [(a, b.tolist()) for a, b in halves],
        ):
            images = open_images(data)
            torch.testing.assert_close(images.inputs, x)
            assert images.labels is not None
            assert images.labels.tolist() == y.tolist()
        assert open_images([x[:3], x[3:]]).labels is None

    def test_second_items_that_are_no_labels(self) -> None:
        x = random(4, 3, 4, 4)
        names = ["a", "b", "c", "d"]
        for second in (torch.rand(4), torch.zeros(4, 2, dtype=torch.long), "name", None, names, []):
            assert open_images([(x, second)]).labels is None

    def test_an_endless_iterable_is_cut(self) -> None:
        images = open_images((random(4, 1, 2, 2, seed=s) for s in itertools.count()), limit=10)
        expected = torch.cat([random(4, 1, 2, 2, seed=s) for s in range(3)])[:10]
        torch.testing.assert_close(images.inputs, expected)

    def test_an_endless_iterable_is_cut_where_memory_ends(self) -> None:
        images = open_images(
            (random(4, 1, 2, 2, seed=s) for s in itertools.count()), memory=3 * 4 * 4 * 4 + 1
        )
        assert len(images) == 12
        assert images.notes[0].startswith("the first 12 images were taken")
        assert open_images([random(4, 1, 2, 2)], memory=1).notes == ()

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ([torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 5, 5)], "one size"),
            (["text"], "first item is str"),
            ([{"a": {"b": 1}}], "several inputs"),
            ([()], "nothing"),
        ],
    )
    def test_refusals(self, data: Any, message: str) -> None:
        with pytest.raises(DataError, match=message):
            open_images(data)


class TestDemo:
    def test_built_in_sets(self) -> None:
        images, test = open_images("demo"), open_images("demo:test")
        assert images.inputs.shape == (1024, 1, 28, 28)
        assert images.labels is None
        assert test.inputs.shape == (5000, 1, 28, 28)
        assert test.labels is not None
        assert sorted(set(test.labels.tolist())) == list(range(10))
        assert abs(float(test.inputs.mean())) < 0.05
        assert abs(float(test.inputs.std()) - 1) < 0.05
        assert len(open_images("demo", limit=16)) == 16
        assert DEMO_PREPROCESS.size == (1, 28, 28)


class TestCheck:
    def test_what_fits(self) -> None:
        check_images(open_images(random(2, 3, 9, 9)), torch.zeros(1, 3, 8, 8))

    @pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 3, 8), (2, 4, 8, 8)])
    def test_what_does_not(self, shape: tuple[int, ...]) -> None:
        given = "×".join(map(str, shape[1:]))
        with pytest.raises(DataError, match=f"{given}.*3×8×8"):
            check_images(open_images(random(*shape)), torch.zeros(1, 3, 8, 8))


class TestPreprocess:
    def test_json(self) -> None:
        for p in (RGB, Preprocess((3, 4, 5), (0.5,), (1.0,), (6, 7), "bicubic")):
            assert Preprocess.from_json(p.to_json()) == p
        with pytest.raises(DataError, match="no preprocessing"):
            Preprocess.from_json({"sise": 3})

    @pytest.mark.parametrize(
        ("size", "resize"), [((10, 20), None), ((50, 10), 9), ((5, 5), 4), ((9, 9), (8, 8))]
    )
    def test_sizes(self, size: tuple[int, int], resize: Any) -> None:
        p = Preprocess((3, 8, 8), (0.0,), (1.0,), resize)
        assert p.apply(Image.new("RGB", size)).shape == (3, 8, 8)

    def test_the_middle_is_kept(self) -> None:
        raw = np.zeros((8, 24), dtype=np.uint8)
        raw[:, 8:16] = pixels(8, 8)
        expected = torch.from_numpy(raw[None, :, 8:16] / 255).float()
        p = Preprocess((1, 8, 8), (0.0,), (1.0,))
        torch.testing.assert_close(p.apply(Image.fromarray(raw)), expected)

    @pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "LAB", "HSV"])
    def test_modes(self, mode: str) -> None:
        gray = Preprocess((1, 8, 8), (0.0,), (1.0,))
        assert gray.apply(Image.new(mode, (8, 8))).shape == (1, 8, 8)
        assert RGB.apply(Image.new(mode, (8, 8))).shape == (3, 8, 8)

    def test_sixteen_bits_are_not_clipped(self) -> None:
        raw = (np.arange(64, dtype=np.uint16) * 1028).reshape(8, 8)
        p = Preprocess((1, 8, 8), (0.0,), (1.0,))
        expected = torch.from_numpy(raw.astype(np.float32) / 65535)[None]
        torch.testing.assert_close(p.apply(Image.fromarray(raw)), expected, rtol=0, atol=2e-3)

    @pytest.mark.parametrize(
        "values",
        [
            {"size": (224, 224)},
            {"size": (2, 8, 8)},
            {"mean": (0.5, 0.5)},
            {"std": (0.0, 1.0, 1.0)},
            {"interpolation": "best"},
        ],
    )
    def test_refusals(self, values: dict[str, Any]) -> None:
        with pytest.raises(DataError):
            Preprocess(**{"size": (3, 8, 8), "mean": (0.5,), "std": (0.5,), **values})


def test_arrays_of_a_file_that_nothing_reads(tmp_path: Path) -> None:
    np.savez(tmp_path / "some.npz", x=np.zeros((4, 1, 6, 6), np.float32), depth=np.zeros((4, 1)))
    (note,) = open_images(tmp_path / "some.npz").notes
    assert note.startswith("arrays that nothing reads: depth (")
    np.savez(tmp_path / "bad.npz", x=np.full((4, 1, 6, 6), np.nan, np.float32))
    with pytest.raises(DataError, match=r"bad\.npz: 4 of 4 images hold NaN"):
        open_images(tmp_path / "bad.npz")


def test_held_out_images_are_named() -> None:
    with pytest.raises(DataError, match="held_out: the images have 1 channel "):
        check_held_out(Images(random(2, 1, 8, 8)), torch.zeros(1, 3, 8, 8), None)
