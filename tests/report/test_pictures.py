"""Pictures say what they draw: equal values are equally coloured, indices come back exactly."""

from __future__ import annotations

import base64
import re
import struct
import zlib

import numpy as np
import pytest

from eadem.maps import Local2d, Toeplitz2d
from eadem.report.colour import diverging, entries, grain, oklch
from eadem.report.images import contact_sheet, filters
from eadem.report.mosaic import SiteView, flat_image, mosaic, tile
from eadem.report.png import encode, encode_indices


def decode(png: bytes) -> np.ndarray:
    """A PNG of the kinds that `encode` writes, as (h, w, 4)."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        kind, body = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        (check,) = struct.unpack(">I", png[at + 8 + length : at + 12 + length])
        assert check == zlib.crc32(kind + body)
        chunks[kind] = body
        at += 12 + length
    width, height, _, colour = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    channels = {2: 3, 3: 1, 6: 4}[colour]
    raw = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, -1)
    pixels = raw[:, 1:].reshape(height, width, channels)
    if raw[0, 0] == 1:
        pixels = np.cumsum(pixels, axis=1, dtype=np.uint64).astype(np.uint8)
    if colour == 3:
        palette = np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(-1, 3)
        alpha = np.frombuffer(chunks.get(b"tRNS", b"\xff" * len(palette)), np.uint8)
        return np.concatenate([palette, alpha[:, None]], axis=1)[pixels[..., 0]]
    if channels == 3:
        opaque = np.full((height, width, 1), 255, np.uint8)
        return np.concatenate([pixels, opaque], axis=-1)
    return pixels


def images(html: str) -> list[np.ndarray]:
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [decode(base64.b64decode(f)) for f in found]


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("colours", [2, 255, 5000])
def test_a_png_holds_the_pixels_it_was_given(channels: int, colours: int) -> None:
    rng = np.random.default_rng(0)
    table = rng.integers(0, 256, (colours, channels), dtype=np.uint8)
    pixels = table[rng.integers(0, colours, (40, 60))]
    assert np.array_equal(decode(encode(pixels))[..., :channels], pixels)


def test_indices_come_back_exactly() -> None:
    index = np.array([[-1, 0, 1], [255, 65536, 2**24 - 2]])
    rgb = decode(encode_indices(index)).astype(np.int64)
    assert np.array_equal((rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]) - 1, index)
    with pytest.raises(ValueError, match="2²⁴"):
        encode_indices(np.array([[2**24]]))


def test_oklch_agrees_with_the_reference_colours() -> None:
    # CSS Color 4: red is oklch(0.628 0.2577 29.23), white is oklch(1 0 0)
    assert np.abs(oklch(0.627955, 0.257683, 29.2339).astype(int) - [255, 0, 0]).max() <= 1
    assert oklch(1.0, 0.0, 0.0).tolist() == [255, 255, 255]


def test_every_colour_is_seen_on_light_and_on_dark() -> None:
    index = np.arange(1000)
    for rgb in (entries(index, 1000), grain(index)):
        light = rgb.astype(float) @ [0.2126, 0.7152, 0.0722]
        assert light.min() > 45
        assert light.max() < 225


def test_neighbouring_values_have_different_colours() -> None:
    rgb = entries(np.arange(200), 200).astype(int)
    assert np.abs(np.diff(rgb, axis=0)).max(axis=1).min() > 20


def test_signed_values_are_blue_and_orange_and_zero_is_clear() -> None:
    below, zero, above = diverging(np.array([-1.0, 0.0, 1.0]), 1.0).astype(int)
    assert below[2] > below[0]
    assert above[0] > above[2]
    assert zero[3] == 0


def site(kind: str) -> SiteView:
    phi = {"shared": Toeplitz2d(4, 2), "own": Local2d(4, 2)}[kind].bind((2 * 9, 16))
    free = phi.rank
    return SiteView(
        "a.weight",
        (18, 16),
        phi.index().position.numpy(),
        0,
        kind,
        "a.weight",
        (free,),
        0,
        free,
    )


def test_what_shares_a_value_shares_a_colour_and_zeros_are_blank() -> None:
    view = site("shared")
    assert view.position is not None
    plane = view.position.reshape(18, 16)
    (picture,) = images(tile(view))
    assert picture.shape == (18, 16, 4)
    assert np.array_equal(picture[..., 3] > 0, plane >= 0)
    for k in range(8):
        assert len(np.unique(picture[plane == k], axis=0)) == 1
    assert len(np.unique(picture[plane >= 0], axis=0)) == 8


def test_windows_of_their_own_have_colours_of_their_own() -> None:
    (shared,), (own,) = images(tile(site("shared"))), images(tile(site("own")))
    assert np.array_equal(shared[..., 3], own[..., 3])
    assert len(np.unique(own.reshape(-1, 4), axis=0)) > 3 * 9


def test_a_transposed_site_shows_its_owner_transposed() -> None:
    plain = SiteView("a", (4, 6), np.arange(24), 1, "Same()", "a", (4, 6), 0, 24)
    turned = np.arange(24).reshape(4, 6).T.reshape(-1)
    other = SiteView("b", (6, 4), turned, 1, "Transpose()", "a", (4, 6), 0, 24)
    assert plain.kind == other.kind == "whole"
    (one,), (two,) = images(tile(plain)), images(tile(other))
    assert np.array_equal(one, two.transpose(1, 0, 2))


def test_equal_sites_look_equal_and_untied_ones_are_grey() -> None:
    starts_late = np.arange(100, 124)
    a = SiteView("a", (4, 6), starts_late, 0, "Same()", "a", (4, 6), 100, 24)
    b = SiteView("b", (4, 6), starts_late, 0, "Same()", "a", (4, 6), 100, 24)
    own = SiteView("c", (4, 6), np.arange(24))
    one, two, three = images(mosaic([a, b, own]))
    assert np.array_equal(one, two)
    assert np.ptp(three[..., :3].astype(int), axis=-1).max() < 12


def test_a_site_whose_values_are_mixed_is_striped() -> None:
    html = tile(SiteView("a", (4, 6), None, 0, "Subspace()", "a", (3,), 0, 3))
    assert "mixed" in html
    assert "data-index" not in html


@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (4, 2, 3), (4, 2, 3, 3), (2, 3, 2, 2, 2)])
def test_every_shape_has_a_picture(shape: tuple[int, ...]) -> None:
    size = int(np.prod(shape))
    plane = flat_image(shape, np.arange(size))
    assert sorted(plane.reshape(-1).tolist()) == list(range(size))
    assert images(tile(SiteView("a", shape, np.arange(size))))
    tied = SiteView("a", shape, np.zeros(size, np.int64), 0, "Gather()", "b", (1,), 0, 1)
    assert images(tile(tied))


def test_names_are_text_not_markup() -> None:
    html = tile(SiteView('a"><script>x</script>', (2,), np.arange(2)))
    assert "<script>" not in html


def test_a_contact_sheet_keeps_every_image() -> None:
    stack = np.arange(5 * 6, dtype=float).reshape(5, 2, 3) + 1
    sheet = contact_sheet(stack, columns=3, gap=2)
    assert sheet.shape == (2 * 4 - 2, 3 * 5 - 2)
    assert np.nansum(sheet) == stack.sum()
    assert images(filters(stack, 3, "five", 200))
    assert images(filters(np.zeros((2, 3, 3)), 2, "nothing", 200))
