"""Photos that packages ship, and crops of them: no photo is both calibrated on and held out.

    pip install scikit-image scikit-learn
    apt-get install lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 mate-backgrounds \\
        plasma-workspace-wallpapers opencv-doc gcompris-qt-data scratch gnome-control-center-data \\
        kphotoalbum kalzium-data palapeli-data

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
from PIL import Image, ImageOps


@dataclass(frozen=True)
class Shipped:
    """Photos of one package: a folder under /usr/share, or of an installed Python package; FILE.jpg each,
    unless `file` says otherwise."""

    package: str
    folder: str
    names: tuple[str, ...]
    file: str = "{}.jpg"
    module: str = ""


# Not all that these packages have: what is drawn, rendered or there twice (a person, a wall, a skyline)
# is left out.
SHIPPED = (
    Shipped("lomiri-wallpapers", "backgrounds", (
        "Bridge_by_Sander_Klootwijk", "Dragonfly_by_Bolly", "Picture_0B_by_freespace",
        "Picture_1A_by_freespace", "Wine_by_Jakkub_Mede", "aitzgorri_by_Aitzol_Berasategi",
        "free_by_Peter_Nerlich", "friends_by_Aitzol_Berasategi", "greentock_by_Peter_Nerlich",
        "life_by_Aitzol_Berasategi", "picosdeeuropa_by_Aitzol_Berasategi",
        "seeding_by_Clements_Engelhardt", "sunset_by_Aitzol_Berasategi", "Kleiber_by_Lukas_Baubkus",
    )),
    Shipped("mate-backgrounds", "backgrounds/mate/nature", (
        "Aqua", "Blinds", "Dune", "FreshFlower", "Garden", "GreenMeadow", "LadyBird", "RainDrops",
        "Storm", "TwoWings", "YellowFlower",
    )),
    Shipped("plasma-workspace-wallpapers", "wallpapers", (
        "BytheWater", "ColdRipple", "ColorfulCups", "DarkestHour", "EveningGlow", "FallenLeaf", "Grey",
        "Kite", "OneStandsOut", "Path", "summer_1am",
    ), "{}/contents/images/2560x1600.jpg"),
    Shipped("opencv-doc", "doc/opencv-doc/examples", (
        "alphamat/input_images/plant.jpg", "data/HappyFish.jpg", "data/aero1.jpg", "data/aloeL.jpg",
        "data/apple.jpg", "data/baboon.jpg", "data/board.jpg", "data/building.jpg",
        "data/butterfly.jpg", "data/chicky_512.png", "data/ela_original.jpg", "data/fruits.jpg",
        "data/home.jpg", "data/leuvenA.jpg", "data/messi5.jpg", "data/orange.jpg",
        "data/rubberwhale1.png", "data/squirrel_cls.jpg", "data/stuff.jpg", "hfs/data/000.jpg",
        "hfs/data/001.jpg", "hfs/data/002.jpg",
    ), "{}"),
    Shipped("scikit-image", "data", (
        "astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg",
    ), "{}", "skimage"),
    Shipped("scikit-learn", "datasets/images", ("china.jpg", "flower.jpg"), "{}", "sklearn"),
    Shipped("scratch", "scratch/Media/Backgrounds", (
        "Indoors/clothing-store", "Indoors/hall", "Indoors/kitchen", "Indoors/the-movies-inside",
        "Nature/beach-malibu", "Nature/canyon", "Nature/flower-bed", "Nature/forest",
        "Nature/garden-rock", "Nature/grand-canyon", "Nature/gravel-desert", "Nature/hill",
        "Nature/lake", "Nature/moon", "Nature/pathway", "Nature/tree", "Nature/water-and-rocks",
        "Nature/wave", "Outdoors/all-sports-mural", "Outdoors/atom-playground",
        "Outdoors/bench-with-view", "Outdoors/berkeley-mural", "Outdoors/boardwalk",
        "Outdoors/brick-wall-and-stairs", "Outdoors/brick-wall1",
        "Outdoors/building-at-mit", "Outdoors/building-fireproof", "Outdoors/castle",
        "Outdoors/city-with-water", "Outdoors/driveway",
        "Outdoors/graffiti", "Outdoors/hallway_outdoors", "Outdoors/hay_field", "Outdoors/houses",
        "Outdoors/mansion", "Outdoors/mural-faro", "Outdoors/parking-ramp", "Outdoors/pool",
        "Outdoors/route66", "Outdoors/silos", "Outdoors/the-movies", "Outdoors/train-tracks1",
        "Outdoors/train-tracks2", "Outdoors/village", "Outdoors/wooden-house",
        "Sports/baseball-field", "Sports/basketball-court1-a", "Sports/football-field",
        "Sports/playing-field", "Sports/tennis-backboard",
    )),
    Shipped("gnome-control-center-data", "pixmaps/faces", (
        "bicycle", "book", "calculator", "cat", "coffee2", "flower2", "gamepad", "guitar2",
        "headphones", "hummingbird", "mountain", "plane", "surfer", "tomatoes", "tree",
    )),
    Shipped("kphotoalbum", "kphotoalbum/demo", (
        "anne_helene", "bar55", "blackie", "cold_water", "donna", "grand_canyon_1",
        "jesper", "new_wave_1", "pool", "qt-logo", "skagen", "snow",
        "spiff", "sunset", "wayne",
    )),
    Shipped("kalzium-data", "kalzium/data/toolpics", (
        "abzug", "becherglas", "brechungsmesser", "brenner", "dsc", "erlenmeyerkolben", "exikator",
        "hplc", "moerser", "phpapier", "rg-staender", "rotationsverdampfer", "rundkolben", "spatel",
        "tonschale", "trichter", "verteiler", "waage",
    )),
    Shipped("palapeli-data", "palapeli/collection", (
        "castle-maintenon", "cincinnati-bridge", "citrus-fruits", "european-honey-bee",
        "panther-chameleon-female",
    )),
)  # fmt: skip
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
PACKAGES = (*(s.package for s in SHIPPED), "gcompris-qt-data")
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
    every = [
        Photo(shipped.package, folder / shipped.file.format(name))
        for shipped in SHIPPED
        for folder in [(_package(shipped.module) if shipped.module else share) / shipped.folder]
        for name in shipped.names
    ]
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


def split(every: list[Photo], one_in: int = 2) -> tuple[list[Photo], list[Photo]]:
    """Photos to calibrate on and photos held out, one in so many and by turns, so that both have some of
    each package."""
    held_out = every[1::one_in]
    return [p for p in every if p not in held_out], held_out


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


def squares(chosen: list[Photo], size: int) -> np.ndarray:
    """(N, size, size, 3) bytes: the largest square in the middle of each photo."""
    fitted = (ImageOps.fit(p.pixels(), (size, size), Image.Resampling.BICUBIC) for p in chosen)
    return np.stack([np.asarray(image) for image in fitted])
