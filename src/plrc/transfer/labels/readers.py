"""The layouts of labelled images (Pascal VOC, COCO, image and mask folders, Cityscapes): their splits, read.

Layer 5: imports config, data and this folder. Reads annotations and the headers of images; decodes only id maps.
"""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from plrc.data import layouts
from plrc.data.decode import read_size
from plrc.data.masks import encode_mask
from plrc.errors import PlrcError
from plrc.files import parse_json
from plrc.measures.segmentation import IGNORED
from plrc.transfer.labels import label_maps
from plrc.transfer.labels.annotations import BOXLESS, FLAT, Notes, Picture, Thing, picture
from plrc.transfer.protocols import Task

ROLES = ("train", "val", "test")
_PLACES = 200  # COCO entries that are looked for in each candidate folder

Pictures = list[Picture]


@dataclass(frozen=True)
class Reader:
    """A source in one layout.

    roles: what its splits for train, val and test are called, those that it has. read: a split's name -> its images
    and, for objects, the classes that they are of. table: all images -> id in the maps -> class name (semantic).
    """

    roles: Mapping[str, str]
    read: Callable[[str], tuple[Pictures, tuple[str, ...]]]
    table: Callable[[Pictures], Mapping[int, str]] = lambda _: {}


def open_source(root: Path, layout: str, task: Task, notes: Notes) -> Reader:
    """The reader of a folder, by the layout's name or ("auto") by what lies in it. Raises PlrcError."""
    if not root.is_dir():
        raise PlrcError(f"{root} is not a folder; name the folder with the labelled images with --data")
    name = layout if layout != "auto" else _layout_of(root)
    return READERS[name](root, task, notes)


def _layout_of(root: Path) -> str:
    marks = {
        "voc": ("ImageSets", "JPEGImages", "VOCdevkit", "VOC20[0-9][0-9]"),
        "cityscapes": ("leftImg8bit",),
        "coco": ("annotations/*.json", "*/annotations.json"),
        "folders": ("labels",),
    }
    for name, patterns in marks.items():
        if any(next(root.glob(pattern), None) for pattern in patterns):
            return name
    looked = ", ".join(pattern for patterns in marks.values() for pattern in patterns)
    raise PlrcError(
        f"{root} holds no labels in a layout that is known; name the folder that holds the splits (looked in it for "
        f"{looked}), or the layout with --data.layout"
    )


def voc(root: Path, task: Task, notes: Notes) -> Reader:
    """Years side by side in `root` or in its VOCdevkit, or one folder. "trainval07+12" joins a list of two years."""
    if task == "instances":
        raise PlrcError(f"{root} is read as Pascal VOC, which gives boxes without masks; choose the task detection")
    kind = "Segmentation" if task == "semantic" else "Main"
    base = root / "VOCdevkit" if (root / "VOCdevkit").is_dir() else root
    years = {path.name[5:]: path for path in sorted(base.glob("VOC20[0-9][0-9]"))}
    own = re.fullmatch(r"VOC20(\d\d)", root.resolve().name)
    folders = years or {own[1] if own else "": root}
    if task == "semantic" and not any((folder / "ImageSets" / kind).is_dir() for folder in folders.values()):
        raise PlrcError(f"{root} has boxes, but no label maps (no ImageSets/Segmentation); choose the task detection")

    def lists(split: str) -> list[tuple[Path, Path]]:
        named = re.fullmatch(r"(.+?)(\d\d(?:\+\d\d)*)", split)
        if named and set(named[2].split("+")) <= set(folders):
            chosen = [folders[year] for year in named[2].split("+")]
            return [(folder, folder / "ImageSets" / kind / f"{named[1]}.txt") for folder in chosen]
        every = [(folder, folder / "ImageSets" / kind / f"{split}.txt") for folder in folders.values()]
        return [(folder, path) for folder, path in every if path.is_file()]

    def read(split: str) -> tuple[Pictures, tuple[str, ...]]:
        files = lists(split)
        if not files:
            there = sorted({path.stem for f in folders.values() for path in (f / "ImageSets" / kind).glob("*.txt")})
            plain = [name for name in there if not any(name.endswith(f"_{other}") for other in (*ROLES, "trainval"))]
            raise PlrcError(
                f"{root} has no list {split} in ImageSets/{kind}; write one of: {', '.join(plain) or '(no lists)'}"
            )
        found: Pictures = []
        for folder, path in files:
            images = stems(folder / "JPEGImages", notes)
            keys = {key: None for line in layouts.lines(str(path)) for key in [_voc_key(line, images)]}
            if task == "semantic":
                maps = folder / ("SegmentationClassAug" if path.stem.endswith("_aug") else "SegmentationClass")
                found += mapped(root, {k: images.get(k) for k in keys}, {k: maps / f"{k}.png" for k in keys}, notes)
            else:
                images = {key: images.get(key, folder / "JPEGImages" / f"{key}.jpg") for key in keys}
                each = (_voc_picture(root, images[k], folder / "Annotations" / f"{k}.xml", notes) for k in keys)
                found += [one for one in each if one is not None]
        return found, tuple(sorted({thing.kind for one in found for thing in one.things}))

    def table(pictures: Pictures) -> Mapping[int, str]:
        return label_maps.VOC if "" not in folders else _table(root, pictures)

    return Reader({role: role for role in ROLES if lists(role)}, read, table)


def _voc_key(line: str, images: Mapping[str, Path]) -> str:
    """The image of a line: its name, with a second column in lists of a class, or as paths in some lists of SBD."""
    first = line.split(maxsplit=1)[0]
    return next((key for key in (line, first, Path(line).stem) if key in images), Path(first).stem)


def _voc_picture(root: Path, image: Path, xml: Path, notes: Notes) -> Picture | None:
    """Corners count pixels from 1 and are both inside the box, hence the - 1; equal ones are a click, not a box."""
    if not xml.is_file():
        notes.count("images without an annotation file, dropped", image.name)
        return None
    try:
        tree = ET.parse(xml).getroot()
    except (ET.ParseError, OSError, ValueError) as error:
        raise PlrcError(f"{xml} is not XML that can be read ({error}); mend or remove it") from error
    size = [tree.findtext(f"size/{side}", "").strip() for side in ("height", "width")]
    stated = (int(size[0]), int(size[1])) if all(map(str.isdecimal, size)) else None
    if (found := picture(root, image, notes, stated)) is None:
        return None
    for i, thing in enumerate(tree.findall("object")):
        where, kind = f"{xml.name} object {i + 1}", thing.findtext("name", "").strip()
        try:
            x0, y0, x1, y1 = (float(thing.findtext(f"bndbox/{end}", "")) for end in ("xmin", "ymin", "xmax", "ymax"))
        except ValueError:
            notes.count(BOXLESS, where)
            continue
        if not kind:
            notes.count("objects without a name, dropped", where)
        elif not (x1 > x0 and y1 > y0):
            notes.count(FLAT, where)
        else:
            difficult = thing.findtext("difficult", "").strip() == "1"
            found.things.append(Thing(kind, (x0 - 1, y0 - 1, x1, y1), where, difficult=difficult))
    return found


def coco(root: Path, task: Task, notes: Notes) -> Reader:
    """annotations/instances_SPLIT.json with the images in SPLIT, or SPLIT/annotations.json with paths relative to it.

    Semantic: semantic/SPLIT/*.png, where 0 is unlabelled, as in COCO's own maps; or SPLIT/semantic/*.png beside
    SPLIT/annotations.json, where 0 is the background, a class of its own.
    """
    folder = root / "annotations"
    central = {path.stem.removeprefix("instances_"): path for path in sorted(folder.glob("instances_*.json"))}
    central = central or {path.stem: path for path in sorted(folder.glob("*.json"))}
    beside = {path.parent.name: path for path in sorted(root.glob("*/annotations.json"))}
    files = central or beside
    maps = {split: root / "semantic" / split if central else root / split / "semantic" for split in files}
    if task == "semantic" and files and not any(path.is_dir() for path in maps.values()):
        raise PlrcError(
            f"{root} has boxes, but no label maps (no folder {next(iter(maps.values()))}); choose the task detection, "
            "or instances where the boxes have masks"
        )

    def read(split: str) -> tuple[Pictures, tuple[str, ...]]:
        if split not in files:
            raise PlrcError(f"{root} has no COCO annotations of a split {split}; write one of: {', '.join(files)}")
        if task != "semantic":
            return _coco_pictures(root, split, files[split], notes)
        places = (root / split / "images", root / split, root / "images" / split, root / "images")
        images = next((place for place in places if place.is_dir()), root)
        return mapped(root, stems(images, notes), stems(maps[split], notes), notes), ()

    def table(pictures: Pictures) -> Mapping[int, str]:
        first = next(iter(files.values()))
        categories = _coco_categories(_coco_table(first), first)
        names = {i: name for i, name in categories.items() if i in range(1, IGNORED)}
        if central:
            return label_maps.found_table([p.labels for p in pictures], label_maps.COCO_STUFF | names, ignored=[0])
        return {0: "background"} | names

    return Reader(_roles(files), read, table)


def _coco_pictures(root: Path, split: str, path: Path, notes: Notes) -> tuple[Pictures, tuple[str, ...]]:
    table = _coco_table(path)
    names = _coco_categories(table, path)
    try:
        entries = {image["id"]: image for image in table["images"]}
        files = [str(image["file_name"]) for image in list(entries.values())[:: max(1, len(entries) // _PLACES)]]
        places = (path.parent, root / split, root / "images" / split, root / "images", root)
        place = max(places, key=lambda place: sum((place / file).is_file() for file in files))
        found = {}
        for i, image in entries.items():
            stated = (int(image["height"]), int(image["width"])) if "height" in image and "width" in image else None
            found[i] = picture(root, place / str(image["file_name"]), notes, stated)
        for i, entry in enumerate(table["annotations"]):
            where = f"{path.name} annotation {entry.get('id', i)}"
            if entry["image_id"] not in found:
                notes.count("annotations of an image that is not listed, dropped", where)
            elif (one := found[entry["image_id"]]) is not None:
                _add_coco(one, entry, names, where, notes)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PlrcError(f"{path} is not a COCO file of instances: {error!r} in its images or annotations") from error
    return [one for one in found.values() if one is not None], tuple(dict.fromkeys(names.values()))


def _add_coco(one: Picture, entry: Mapping[str, Any], names: Mapping[Any, str], where: str, notes: Notes) -> None:
    try:
        x, y, w, h = (float(number) for number in entry["bbox"])
        area = float(entry["area"]) if "area" in entry else None
    except (KeyError, TypeError, ValueError):
        notes.count(BOXLESS, where)
        return
    category = entry.get("category_id")
    kind = names.get(category, f"(category {category})")
    crowd = bool(entry.get("iscrowd", 0))
    one.things.append(Thing(kind, (x, y, x + w, y + h), where, crowd, area, entry.get("segmentation")))


def _coco_table(path: Path) -> dict[str, Any]:
    try:
        table: dict[str, Any] = parse_json(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise PlrcError(f"{path} is not JSON that can be read ({error}); mend or remove it") from error
    return table


def _coco_categories(table: dict[str, Any], path: Path) -> dict[Any, str]:
    """Category id -> name, in the order of the ids."""
    try:
        return {c["id"]: str(c["name"]) for c in sorted(table["categories"], key=lambda c: c["id"])}
    except (KeyError, TypeError) as error:
        raise PlrcError(f'{path} is not a COCO file of instances: it has no "categories" with id and name') from error


def folders(root: Path, task: Task, notes: Notes) -> Reader:
    """images/SPLIT and labels/SPLIT, a PNG of ids for each image. Names: classes.txt, or CamVid's where the files are
    named as CamVid's, else "class 0", ... for the ids that occur."""
    if task != "semantic":
        raise PlrcError(f"{root} has images and id maps, but no boxes; choose the task semantic")
    splits = sorted(path.name for path in (root / "images").glob("*") if path.is_dir())

    def read(split: str) -> tuple[Pictures, tuple[str, ...]]:
        if split not in splits:
            raise PlrcError(f"{root}/images has no folder {split}; write one of: {', '.join(splits)}")
        return mapped(root, stems(root / "images" / split, notes), stems(root / "labels" / split, notes), notes), ()

    def table(pictures: Pictures) -> Mapping[int, str]:
        if not (root / "classes.txt").is_file() and label_maps.is_camvid(p.labels for p in pictures):
            notes.say("files named as CamVid's: its 11 classes are taken; id 11 is unlabelled and ignored")
            return label_maps.CAMVID
        return _table(root, pictures)

    return Reader(_roles(splits), read, table)


def cityscapes(root: Path, task: Task, notes: Notes) -> Reader:
    """leftImg8bit/SPLIT/CITY and gtFine/SPLIT/CITY. The public test split has no labels: val serves as test."""
    ending = "labelIds" if task == "semantic" else "instanceIds"
    modes = label_maps.MODES if task == "semantic" else ("I;16", "I;16B", "I")
    splits = sorted(path.name for path in (root / "leftImg8bit").glob("*") if path.is_dir())

    def read(split: str) -> tuple[Pictures, tuple[str, ...]]:
        if split not in splits:
            raise PlrcError(f"{root}/leftImg8bit has no folder {split}; write one of: {', '.join(splits)}")
        images = _cut(stems(root / "leftImg8bit" / split, notes), "_leftImg8bit")
        maps = _cut(stems(root / "gtFine" / split, notes), f"_gtFine_{ending}")
        found = mapped(root, images, maps, notes, modes)
        if task == "semantic":
            return found, ()
        for one in found:
            one.things.extend(_cityscapes_things(one.labels, task == "instances"))
        return [one._replace(labels="") for one in found], tuple(label_maps.CITYSCAPES_INSTANCES.values())

    return Reader(_roles(set(splits) & {"train", "val"}), read, lambda _: label_maps.CITYSCAPES)


def _cityscapes_things(path: str, masks: bool) -> list[Thing]:
    """Objects of a map of classId * 1000 + number; a bare classId is a group that was not told apart: ignored."""
    with Image.open(path) as image:
        ids = np.asarray(image).astype(np.int32)
    found = []
    for value in np.unique(ids).tolist():
        kind = value // 1000 if value >= 1000 else value
        if kind in label_maps.CITYSCAPES_INSTANCES:
            mask = ids == value
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
            segment = encode_mask(mask) if masks else None
            where, area = f"{Path(path).name} id {value}", float(mask.sum())
            found.append(Thing(label_maps.CITYSCAPES_INSTANCES[kind], box, where, value < 1000, area, segment))
    return found


READERS: dict[str, Callable[[Path, Task, Notes], Reader]] = {
    "voc": voc,
    "coco": coco,
    "folders": folders,
    "cityscapes": cityscapes,
}


def stems(folder: Path, notes: Notes) -> dict[str, Path]:
    """Images below a folder by their relative name without its ending. Raises PlrcError where there are none."""
    listing = layouts.folder(str(folder))
    notes.say(*listing.notes)
    return {os.path.splitext(name)[0]: folder / name for name in sorted(listing.names)}


def mapped(
    root: Path,
    images: Mapping[str, Path | None],
    maps: Mapping[str, Path],
    notes: Notes,
    modes: tuple[str, ...] = label_maps.MODES,
) -> Pictures:
    """Images with their id maps, by common key. Images without a map, maps without an image and maps of another size
    than the image are dropped; a map of another mode than `modes` is a PlrcError."""
    found = []
    for key in sorted({*images, *maps}):
        image, ids = images.get(key), maps.get(key)
        if image is None or ids is None or not ids.is_file():
            what = "label maps without an image" if image is None else "images without a label map"
            notes.count(f"{what}, dropped", key)
        elif (one := picture(root, image, notes)) is not None:
            height, width, mode = read_size(ids)
            label_maps.check_mode(ids, mode, modes)
            if (height, width) == (one.height, one.width):
                found.append(one._replace(labels=str(ids)))
            else:
                notes.count("label maps of another size than the image, dropped", key)
    return found


def _roles(splits: Iterable[str]) -> dict[str, str]:
    """train2017 is for training, and so on: the first in order of those that begin with the role's name."""
    firsts = {role: next((s for s in sorted(splits) if s.startswith(role)), "") for role in ROLES}
    return {role: split for role, split in firsts.items() if split}


def _table(root: Path, pictures: Pictures) -> Mapping[int, str]:
    """classes.txt of the source, else the ids that occur."""
    if (root / "classes.txt").is_file():
        return label_maps.listed_table(root / "classes.txt")
    return label_maps.found_table([p.labels for p in pictures], {})


def _cut(files: Mapping[str, Path], ending: str) -> dict[str, Path]:
    """Those whose key has the ending, without it."""
    return {key.removesuffix(ending): path for key, path in files.items() if key.endswith(ending)}
