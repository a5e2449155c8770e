"""Photos that packages ship, and crops of them: no photo is both calibrated on and held out.

    pip install scikit-image scikit-learn
    apt-get install lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 mate-backgrounds \\
        plasma-workspace-wallpapers opencv-doc gcompris-qt-data

`opencv-doc` puts its examples under /usr/share/doc, where some systems (containers, mostly) install
nothing: `dpkg -x` into a folder does as well, and that folder is given as the root.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import qt_resources
from PIL import Image

LOMIRI = (
    "Bridge_by_Sander_Klootwijk", "Dragonfly_by_Bolly", "Picture_0B_by_freespace",
    "Picture_1A_by_freespace", "Wine_by_Jakkub_Mede",
    "aitzgorri_by_Aitzol_Berasategi", "free_by_Peter_Nerlich",
    "friends_by_Aitzol_Berasategi", "greentock_by_Peter_Nerlich",
    "life_by_Aitzol_Berasategi", "picosdeeuropa_by_Aitzol_Berasategi",
    "seeding_by_Clements_Engelhardt", "sunset_by_Aitzol_Berasategi",
    "Kleiber_by_Lukas_Baubkus",
)  # fmt: skip
MATE = (
    "Aqua", "Blinds", "Dune", "FreshFlower", "Garden", "GreenMeadow", "LadyBird", "RainDrops",
    "Storm", "TwoWings", "YellowFlower",
)  # fmt: skip
PLASMA = (
    "BytheWater", "ColdRipple", "ColorfulCups", "DarkestHour", "EveningGlow", "FallenLeaf", "Grey",
    "Kite", "OneStandsOut", "Path", "summer_1am",
)  # fmt: skip
OPENCV = (
    "alphamat/input_images/plant.jpg", "data/HappyFish.jpg", "data/aero1.jpg", "data/aloeL.jpg",
    "data/apple.jpg", "data/baboon.jpg", "data/board.jpg", "data/building.jpg",
    "data/butterfly.jpg", "data/chicky_512.png", "data/ela_original.jpg", "data/fruits.jpg",
    "data/home.jpg", "data/leuvenA.jpg", "data/messi5.jpg", "data/orange.jpg",
    "data/rubberwhale1.png", "data/squirrel_cls.jpg", "data/stuff.jpg", "hfs/data/000.jpg",
    "hfs/data/001.jpg", "hfs/data/002.jpg",
)  # fmt: skip
SKIMAGE = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
SKLEARN = ("china.jpg", "flower.jpg")
GCOMPRIS = (
    "categorization", "details", "erase", "explore_farm_animals", "explore_monuments",
    "explore_world_animals", "explore_world_music",
)  # fmt: skip
LEFT_OUT = (
    "Gogh", "Tanguy", "Auvers",  # paintings
    "images/monuments/brandenburgGate", "images/monuments/colosseum", "images/monuments/greatPyramid",
    "image/Neuschwanstein",  # in another resource too
)  # fmt: skip
LEAST = 200  # pixels of the shorter side: smaller pictures are icons
PACKAGES = (
    "lomiri-wallpapers", "mate-backgrounds", "plasma-workspace-wallpapers", "opencv-doc",
    "scikit-image", "scikit-learn", "gcompris-qt-data",
)  # fmt: skip
SIZE = 1024  # the longer side at which a photo is read: wallpapers have up to 6,000 pixels


@dataclass(frozen=True)
class Photo:
    """One photo of a package; `inside` is its name in the Qt resource that `path` then is."""

    package: str
    path: Path
    inside: str = ""

    @property
    def name(self) -> str:
        """What the tables call it."""
        if self.inside:
            return f"{self.package}/{self.path.stem}/{Path(self.inside).stem}"
        stem = self.path.stem if not self.path.stem[0].isdigit() else self.path.parts[-4]
        return f"{self.package}/{stem if self.package[:6] != 'opencv' else self.path.stem}"

    def pixels(self) -> Image.Image:
        """In RGB, no longer than SIZE on its longer side."""
        return _read(self.path, self.inside)


@cache
def _read(path: Path, inside: str) -> Image.Image:
    image = Image.open(BytesIO(_resource(path)[inside]) if inside else path)
    image.draft("RGB", (SIZE, SIZE))
    image = image.convert("RGB")
    image.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
    return image


@cache
def _resource(path: Path) -> dict[str, bytes]:
    return qt_resources.files(path)


def _photos_inside(path: Path) -> list[Photo]:
    """Those of a Qt resource of gcompris; what is drawn is smaller, or no WebP."""
    return [
        Photo("gcompris-qt-data", path, name)
        for name, content in sorted(_resource(path).items())
        if name.endswith(".webp")
        and not any(part in name for part in LEFT_OUT)
        and min(Image.open(BytesIO(content)).size) >= LEAST
    ]


def photos(root: Path, packages: Sequence[str] = PACKAGES) -> list[Photo]:
    """All of these packages, in a fixed order; FileNotFoundError names those that are missing and how
    to get them."""
    share = root / "usr/share"
    wallpapers = share / "wallpapers"
    examples = share / "doc/opencv-doc/examples"
    every = [
        *(Photo("lomiri-wallpapers", share / f"backgrounds/{n}.jpg") for n in LOMIRI),
        *(Photo("mate-backgrounds", share / f"backgrounds/mate/nature/{n}.jpg") for n in MATE),
        *(Photo("plasma-workspace-wallpapers", wallpapers / n / "contents/images/2560x1600.jpg")
          for n in PLASMA),
        *(Photo("opencv-doc", examples / n) for n in OPENCV),
        *(Photo("scikit-image", _package("skimage") / "data" / n) for n in SKIMAGE),
        *(Photo("scikit-learn", _package("sklearn") / "datasets/images" / n) for n in SKLEARN),
    ]  # fmt: skip
    found = [p for p in every if p.package in packages]
    inside = GCOMPRIS if "gcompris-qt-data" in packages else ()
    resources = [share / f"gcompris-qt/rcc/{name}.rcc" for name in inside]
    missing = [str(p) for p in (*(p.path for p in found), *resources) if not p.exists()]
    if missing:
        raise FileNotFoundError(f"{', '.join(missing)}: install these packages\n{__doc__}")
    return found + [photo for resource in resources for photo in _photos_inside(resource)]


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return Path(name)
    return Path(spec.origin).parent


def split(every: list[Photo]) -> tuple[list[Photo], list[Photo]]:
    """Photos to calibrate on and photos held out, by turns, so that both have some of each package."""
    return every[::2], every[1::2]


def crops(chosen: list[Photo], each: int, size: int, seed: int) -> np.ndarray:
    """(N, size, size, 3) bytes: so many random squares of each photo, by turns over the photos.

    Squares have 0.4 to 1 of the shorter side, and every other one is mirrored.
    """
    generator = np.random.default_rng(seed)
    found = []
    for number in range(each):
        for photo in chosen:
            image = photo.pixels()
            side = int(min(image.size) * generator.uniform(0.4, 1.0))
            left, top = (int(generator.integers(0, n - side + 1)) for n in image.size)
            crop = image.crop((left, top, left + side, top + side))
            crop = crop.resize((size, size), Image.Resampling.BICUBIC)
            found.append(np.asarray(crop)[:, :: -1 if number % 2 else 1])
    return np.stack(found)
