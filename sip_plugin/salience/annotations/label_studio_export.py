"""What is in Label Studio's export, and which of its tasks belongs to which image."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from sip_plugin.salience.annotations.files import check_one_image_each, read_json

_SHAPES = ("points", "vertices", "x", "imageDataURL")  # what the value of a region that is no brush stroke holds


class Region(NamedTuple):
    """What somebody marked in an image."""

    labels: frozenset[str]
    kind: str
    size: tuple[Any, Any]  # height and width of the image as it was annotated
    rotation: float
    is_brush: bool
    stroke: Any  # the encoded pixels of a brush stroke, as bytes unless they are broken


# --- the export -------------------------------------------------------------------------------------------------------


def read_tasks(file: Path) -> list[Mapping[str, Any]]:
    """The tasks of an export in the format JSON.

    Raises:
        ValueError: If it is of another format.
    """
    tasks = read_json(file)
    if not isinstance(tasks, list) or not all(
        isinstance(task, Mapping)
        and isinstance(task.get("annotations"), list)
        and isinstance(task.get("data"), Mapping)
        for task in tasks
    ):
        raise ValueError(
            f"{file} is not Label Studio's export in the format JSON, a list of tasks with data and annotations. "
            "(JSON-MIN and CSV are others.)"
        )
    return tasks


def annotations_of(task: Mapping[str, Any]) -> list[list[Region]]:
    """The regions of each of a task's annotations, but those of somebody who skipped it."""
    submitted = (each for each in task["annotations"] if not each.get("was_cancelled"))
    return [_regions(each["result"]) for each in submitted if each.get("result") is not None]


def _regions(results: Sequence[Mapping[str, Any]]) -> list[Region]:
    """The regions in the results; one region may be in several of one id: its look, its labels, what was said about it."""
    found: dict[Any, Region] = {}
    for number, result in enumerate(results):
        value = result.get("value") or {}
        if "rle" not in value and not any(key in value for key in _SHAPES):
            continue
        key = result.get("id", number)
        labels = frozenset(label for name, names in value.items() if name.endswith("labels") for label in names)
        if key in found:
            found[key] = found[key]._replace(labels=found[key].labels | labels)
            continue
        size = result.get("original_height"), result.get("original_width")
        found[key] = Region(
            labels,
            str(result.get("type")),
            size,
            result.get("image_rotation") or 0,
            "rle" in value,
            _packed(value.get("rle")),
        )
    return list(found.values())


def _packed(stroke: Any) -> Any:
    """A stroke as bytes, an eighth of the list. What cannot be bytes is left as it is: reading it will be an error."""
    try:
        return bytes(stroke) if isinstance(stroke, list) else stroke
    except (TypeError, ValueError):
        return stroke


# --- which task belongs to which image --------------------------------------------------------------------------------


def image_of(task: Mapping[str, Any], image: str | Callable[[Mapping[str, Any]], str], file: Path) -> PurePosixPath:
    """The path of a task's image, from a field of the task's data or a function.

    Raises:
        ValueError: If there is no such field.
    """
    if callable(image):
        return PurePosixPath(image(task))
    address = task["data"].get(image)
    if not isinstance(address, str):
        raise ValueError(
            f"The task {task.get('id')} in {file} has no image in its field {image!r}; it has: {', '.join(task['data'])}. "
            "Name the field, image=."
        )
    url = urlsplit(address)
    if url.path.endswith("/local-files/"):
        return PurePosixPath(parse_qs(url.query).get("d", [""])[0])
    # Only an address may end in a query; a path may hold what looks like one.
    return PurePosixPath(unquote(url.path if url.scheme else address))


def tasks_of(images: Sequence[Path], places: Sequence[PurePosixPath], file: Path) -> list[int | None]:
    """The number of each image's task, None for an image without one: the task of its name; of several, the one with which
    the most folders agree.

    Raises:
        ValueError: If an image has several tasks, or a task several images.
    """
    by_name = defaultdict(list)
    for number, place in enumerate(places):
        for name in _names(place):
            by_name[name].append(number)
    numbers = []
    for image in images:
        named = by_name.get(_stored(image.name), [])
        agreement = [_common_folders(image, places[number]) for number in named]
        best = [number for number, count in zip(named, agreement, strict=True) if count == max(agreement)]
        if len(best) > 1:
            raise ValueError(
                f"{file} has {len(best)} tasks for the image {image}, as {places[best[0]]} and {places[best[1]]}. Names "
                "must tell tasks apart (folders count); image= takes a function from a task to its image's path."
            )
        numbers.append(best[0] if best else None)
    check_one_image_each([None if number is None else places[number] for number in numbers], images, file)
    return numbers


def _names(place: PurePosixPath) -> set[str]:
    """What a task's image may be called: an upload has eight characters of its own before the name."""
    name = _stored(place.name)
    return {name, re.sub("^[0-9a-f]{8}-", "", name)} if "upload" in place.parts else {name}


def _stored(name: str) -> str:
    """A file name as an upload stores it."""
    return re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_"))


def _common_folders(image: Path, place: PurePosixPath) -> int:
    pairs = zip(reversed(image.parts[:-1]), reversed(place.parts[:-1]), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
