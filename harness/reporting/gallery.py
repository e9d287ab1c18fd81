"""Pictures of the report as HTML: crops side by side under one view, and maps of where networks attend."""

from collections.abc import Sequence
from html import escape
from itertools import groupby
from typing import Any

from harness.reporting.pictures import AttentionMap, Picture, Pictures

# Photographs of scikit-image's documentation (skimage.data), of which the dataset `demo` is validated on three.
DEMO_CREDITS = {
    "astronaut": "Eileen Collins, by NASA, public domain",
    "chelsea": "by Stéfan van der Walt, CC0",
    "coffee": "by Rachel Michetti for Pikolo Espresso Bar, CC0",
}


def write_crops(pictures: Pictures) -> str:
    """Return all crops; without any, why there are none."""
    parts = [_write_comparison(picture, pictures) for picture in pictures.images]
    return "\n".join([*parts, _write_notes(pictures)])


def _write_notes(pictures: Pictures) -> str:
    return f"<p class='note'>{escape(' '.join(pictures.notes))}</p>" if pictures.notes else ""


def _write_comparison(picture: Picture, pictures: Pictures) -> str:
    left, top, side = picture.crop
    region = picture.box[2]
    zoom, x, y = region / side, left / region, top / region
    tiles = []
    for tile in picture.tiles:
        words = []
        if tile.crop_psnr_db is not None:
            words.append(f"crop {tile.crop_psnr_db:.2f} dB")
        if tile.image_psnr_db is not None:
            words.append(f"image {tile.image_psnr_db:.2f} dB")
        role = (
            f" <span class='soft'>({escape(tile.role)})</span>"
            if tile.role not in ("baseline", "the photograph")
            else ""
        )
        name = "LR, bicubic" if tile.name == "bicubic" else tile.name
        alt = escape(f"{name}: {picture.name}, {side}×{side} pixels of the crop; arrow keys move, + and − zoom")
        tiles.append(
            f"<figure><div class='view' tabindex='0' role='group' aria-label='{alt}'>"
            f"<img src='{tile.png}' alt='{alt}' draggable='false'></div>"
            f"<figcaption><b>{escape(name)}{role}</b>{escape(' · '.join(words)) or 'the photograph'}</figcaption>"
            "</figure>"
        )
    where = _write_overview(picture)
    style = f"--zoom:{zoom:.4f};--x:{x:.5f};--y:{y:.5f}"
    part = "a part of " if picture.is_part else ""
    height, width = picture.lr_size
    explained = (
        f"The crop is where these restorations differ most, {side}×{side} of {part}{picture.size[1]}×{picture.size[0]} "
        f"high-resolution pixels; {region}×{region} can be moved about in. Low-resolution input {width}×{height}. "
        f"Crop: PSNR of the luma inside it; image: {pictures.image_metric}, of the whole image as it was scored."
    )
    return (
        f"<h3>{escape(picture.name)}</h3><div class='comparison' data-zoom='{zoom:.4f}' data-x='{x:.5f}' "
        f"data-y='{y:.5f}' style='{style}'><div class='row controls' hidden>"
        "<button type='button' data-zoom-by='1.5' aria-label='zoom in'>+</button>"
        "<button type='button' data-zoom-by='0.6667' aria-label='zoom out'>−</button>"
        "<button type='button' data-zoom-reset>reset</button><span class='zoomed'></span>"
        "<span class='soft'>drag, wheel or arrow keys: all views move together</span></div>"
        f"<div class='tiles'>{where}{''.join(tiles)}</div><p class='note'>{escape(explained)}</p></div>"
    )


def _write_overview(picture: Picture) -> str:
    left, top, side = picture.box
    height, width = picture.size
    crop_left, crop_top, crop = picture.crop
    place = (
        f"left:{100 * (left + crop_left) / width:.2f}%;top:{100 * (top + crop_top) / height:.2f}%;"
        f"width:{100 * crop / width:.2f}%;height:{100 * crop / height:.2f}%"
    )
    alt = escape(f"{picture.name} as a whole; a frame marks the crop")
    return (
        f"<figure><div class='overview'><img src='{picture.overview}' alt='{alt}'>"
        f"<div class='seen' data-side='{side}' data-left='{left}' data-top='{top}' data-wide='{width}' "
        f"data-high='{height}' style='{place}'></div></div><figcaption><b>where</b>the frame is what is "
        "seen</figcaption>"
        "</figure>"
    )


def list_maps(pictures: Pictures) -> list[tuple[Picture, list[AttentionMap]]]:
    """Return the maps of one network and policy after the other, each with its routings in the order of γ."""
    return [
        (picture, list(maps))
        for picture in pictures.images
        for _, maps in groupby(picture.maps, key=lambda one: (one.name, one.routing.partition(" ")[0]))
    ]


def describe_maps(pictures: Pictures) -> list[dict[str, Any]]:
    """Return what the page draws of the maps; it begins with the chosen routing, or half of all windows where that
    attends to none.
    """
    return [
        {
            "window": maps[0].window,
            "size": list(maps[0].size),
            "lr": list(picture.lr_size),
            "at": [{"routing": one.routing, "masks": list(one.masks)} for one in maps],
            "first": min(range(len(maps)), key=lambda index: _distance(maps[index])),
        }
        for picture, maps in list_maps(pictures)
    ]


def _distance(found: AttentionMap) -> float:
    return -1.0 if found.routing == found.chosen and found.share > 0 else abs(found.share - 0.5)


def write_maps(pictures: Pictures) -> str:
    """Return the maps of attention, which the page's script fills; '' where no network routes."""
    found = list_maps(pictures)
    if not found:
        return ""
    cards = []
    for index, (picture, maps) in enumerate(found):
        height, width = picture.lr_size
        rows, columns = maps[0].size
        cards.append(
            f"<figure class='map' id=\"map-{index}\"><div class='under'><img src='{picture.overview}' "
            f"alt='{escape(picture.name)}'><svg class='windows' viewBox='0 0 {width} {height}' "
            f"preserveAspectRatio='none' role='img' aria-label='windows of {escape(picture.name)} that got attention'>"
            f"</svg></div><figcaption><b>{escape(maps[0].name)}, {escape(picture.name)}</b>"
            f"<span class='soft'>its crops are of {escape(maps[0].chosen)}</span>"
            f"<span class='told'>{_write_shares(maps)}</span>"
            "<span class='row controls' hidden><label>routing <select class='at-gamma'></select></label>"
            f"<label>block <select class='at-block'></select></label></span>"
            f"<span class='soft'>{rows}×{columns} windows of {maps[0].window}×{maps[0].window} low-resolution pixels"
            "</span></figcaption></figure>"
        )
    legend = (
        "<p class='row'><span class='scale' aria-hidden='true'></span><span>few → all blocks gave the window "
        "attention; "
        "windows without colour got convolution alone in every block</span></p>"
    )
    return f"{legend}<div class='maps'>{''.join(cards)}</div>"


def _write_shares(maps: Sequence[AttentionMap]) -> str:
    return escape("; ".join(f"{one.routing}: {one.share:.0%} of windows" for one in maps))


def credit_images(pictures: Pictures | None, dataset: str) -> str:
    """Say whose the images are."""
    if dataset != "demo":
        return f"Images of {dataset} are under the licence of that data set; this file shows parts of them."
    names = [picture.name for picture in pictures.images] if pictures else list(DEMO_CREDITS)
    whose = [f"{name} {DEMO_CREDITS[name]}" for name in names if name in DEMO_CREDITS]
    return f"Photographs that come with scikit-image: {'; '.join(whose)}."
