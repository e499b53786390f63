"""Each chart as a PNG."""

import struct


def test_each_chart_is_a_png_of_a_sensible_size(written):
    pictures = sorted(written.glob("*.png"))
    assert len(pictures) == 7
    for picture in pictures:
        data = picture.read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", data[16:24])
        assert 1360 <= width <= 2400, picture.name
        assert 300 <= height <= 2400, picture.name
        assert len(set(data[100:])) > 200  # not one colour
