"""Frames of a video come by their number, whatever codec, order, rotation or damage."""

import struct

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcl.errors_dcl import InputError
from dcl.video_dcl import Video, evenly_spaced

WIDTH, HEIGHT, BITS = 128, 64, 8


def numbered(number):
    """A frame that shows its number: eight bright or dark bars over the upper half, the lower half grey."""
    image = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    for bit in range(BITS):
        image[: HEIGHT // 2, bit * 16 : (bit + 1) * 16] = 230 if number >> bit & 1 else 25
    return image


def number_of(image):
    return sum(1 << bit for bit in range(BITS) if image[8:24, bit * 16 + 4 : bit * 16 + 12].mean() > 128)


def write_video(path, frames=60, codec="libx264", options=None, rotation=None, container_options=None):
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(number), format="rgb24")))
        container.mux(stream.encode())
    return path


def packets_of(path):
    """Return position and size of each packet of a video in its file."""
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(container.streams.video[0]) if packet.size]


def damage(path, packets):
    """Wipe what some packets hold, but not what the container says of them."""
    data = bytearray(path.read_bytes())
    for position, size in (packets_of(path)[packet] for packet in packets):
        data[position + 8 : position + size] = bytes(size - 8)
    path.write_bytes(data)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """60 frames of H.264 with frames that lean on later ones, a start for the decoder every 12."""
    options = {"g": "12", "bf": "2", "crf": "10", "preset": "veryfast"}
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4", options=options)


@given(st.sets(st.integers(0, 59), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_every_wanted_frame_comes_once_in_order_whatever_is_wanted(clip, wanted):
    with Video(clip) as video:
        assert len(video.numbers) == 60
        read = [(index, number_of(image)) for index, image in video.read(wanted)]
    assert read == [(index, index) for index in sorted(wanted)]


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "mpeg4", {"g": "10", "qscale": "2"}),
        ("a.avi", "mjpeg", {}),
        ("a.webm", "libvpx-vp9", {"g": "15", "deadline": "realtime", "crf": "10"}),
        ("a.mkv", "libx264", {"g": "250", "bf": "3", "crf": "10"}),
        ("a.mp4", "libx264", {"x264-params": "open-gop=1:keyint=12:bframes=3:crf=10"}),
        ("a.mpg", "mpeg1video", {"g": "12", "bf": "2", "qscale": "2"}),
        ("a.mpeg", "mpeg2video", {"g": "12", "bf": "2", "qscale": "2"}),
        ("a.mpg", "libx264", {"g": "12", "bf": "2", "crf": "10"}),
        ("a.ts", "libx264", {"g": "12", "bf": "2", "crf": "10"}),
        ("a.flv", "libx264", {"g": "12", "bf": "2", "crf": "10"}),
        ("a.avi", "mpeg4", {"g": "10", "qscale": "2"}),
        ("a.avi", "libx264", {"g": "12", "bf": "2", "crf": "10"}),
        ("a.wmv", "libx264", {"g": "12", "bf": "2", "crf": "10"}),
        ("a.wmv", "wmv2", {"g": "12", "qscale": "2"}),
        ("a.vob", "mpeg2video", {"g": "12", "bf": "2", "qscale": "2"}),
        ("a.m1v", "mpeg1video", {"g": "12", "bf": "2", "qscale": "2"}),
        ("a.h264", "libx264", {"g": "12", "bf": "2", "crf": "10"}),
        ("a.webm", "libvpx", {"g": "12", "deadline": "realtime", "crf": "10", "b": "1M"}),
        ("a.mp4", "libx265", {"x265-params": "keyint=12:bframes=3:crf=10:log-level=0"}),
    ],
)
def test_numbers_hold_for_the_usual_codecs(tmp_path, name, codec, options):
    path = write_video(tmp_path / name, 40, codec, options)
    with Video(path) as video:
        assert len(video.numbers) == 40 and video.duration == pytest.approx(40 / 25, abs=0.03)
        assert [number_of(image) for _, image in video.read(range(40))] == list(range(40))
        wanted = [0, 13, 14, 27, 39]
        assert [number_of(image) for _, image in video.read(wanted)] == wanted


def test_one_video_can_be_read_twice(clip):
    with Video(clip) as video:
        first, second = ([number_of(image) for _, image in video.read([3, 50])] for _ in range(2))
    assert first == second == [3, 50]


def test_a_seek_skips_what_need_not_be_decoded(clip, monkeypatch):
    decoded = []
    original = Video._decode_from

    def counted(self, start):
        for index, frame in original(self, start):
            decoded.append(index)
            yield index, frame

    monkeypatch.setattr(Video, "_decode_from", counted)
    with Video(clip) as video:
        assert [index for index, _ in video.read([0, 49])] == [0, 49]
    assert decoded == [0, 48, 49]


def test_a_turned_video_is_read_upright(tmp_path):
    upright = numbered(37)
    path = write_video(tmp_path / "a.mp4", 38, rotation=90, options={"crf": "10"})
    with Video(path) as video:
        ((_, image),) = video.read([37])
    assert image.shape == (WIDTH, HEIGHT, 3)
    assert np.abs(np.rot90(upright, 1).astype(int) - image).mean() < 8


def test_a_video_that_breaks_off_has_the_frames_before_the_break(tmp_path):
    options = {"crf": "10", "g": "12"}
    whole = write_video(tmp_path / "a.mp4", 60, options=options, container_options={"movflags": "faststart"})
    data = whole.read_bytes()
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(data[: len(data) * 2 // 3])
    with Video(broken) as video:
        assert 10 <= len(video.numbers) < 60 and video.breaks_off
        wanted = evenly_spaced(len(video.numbers) - 4, 4)
        assert [number_of(image) for _, image in video.read(wanted)] == wanted


def test_damage_in_the_middle_is_named_and_what_came_before_is_given(tmp_path):
    path = write_video(tmp_path / "a.avi", 30, "mjpeg")
    data = bytearray(path.read_bytes())
    half = len(data) // 2
    data[half : half + len(data) // 6] = bytes(len(data) // 6)
    path.write_bytes(data)
    read = []
    with pytest.raises(InputError, match=r"a\.avi.*copy or download it again"), Video(path) as video:
        for index, image in video.read(range(30)):
            read.append((index, number_of(image)))
    assert len(read) >= 10
    assert all(index == number for index, number in read)


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100])
def test_what_is_no_video_is_refused(tmp_path, content):
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"the video .*a\.mp4 cannot be opened .*copy or download it again"):
        Video(path)


def test_sound_alone_is_refused(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(InputError, match="holds no video"):
        Video(path)


def test_size_times_and_duration_are_those_of_the_frames(clip, tmp_path):
    with Video(clip) as video:
        assert video.size == (WIDTH, HEIGHT)
        assert [video.time(number) for number in (0, 1, 59)] == pytest.approx([0, 1 / 25, 59 / 25])
        assert video.duration == pytest.approx(60 / 25)
    with Video(write_video(tmp_path / "one.mp4", 1)) as video:
        assert video.duration == 0 and video.time(0) == 0


def test_a_frame_that_cannot_be_decoded_costs_only_itself(tmp_path):
    path = write_video(tmp_path / "a.avi", 30, "mjpeg")
    damage(path, [14, 15, 20])
    with Video(path) as video:
        read = dict(video.read_readable(video.numbers))
    assert list(read) == list(video.numbers) == list(range(30))
    assert [number for number, image in read.items() if isinstance(image, InputError)] == [14, 15, 20]
    assert all(isinstance(image, InputError) or number_of(image) == number for number, image in read.items())


@given(st.integers(1, 5000), st.integers(1, 64))
def test_evenly_spaced_frames_reach_from_the_first_to_the_last(length, number):
    frames = evenly_spaced(length, number)
    assert len(frames) == min(length, number)
    assert frames[0] == 0
    assert frames == sorted(set(frames))
    assert frames[-1] == (length - 1 if len(frames) > 1 else 0)
    assert max(np.diff(frames), default=0) - min(np.diff(frames), default=0) <= 1


@pytest.mark.parametrize(
    ("codec", "options"),
    [("libx264", {"bf": "2", "g": "12", "crf": "10"}), ("mpeg4", {"bf": "2", "g": "12", "qscale": "2"})],
)
@pytest.mark.parametrize("threads", [0, 1])
def test_avi_which_tells_no_times_of_frames_that_lean_on_later_ones_loses_none(tmp_path, codec, options, threads):
    path = write_video(tmp_path / "a.avi", 40, codec, options)
    with Video(path, threads) as video:
        assert len(video.numbers) == 40 and video.duration == pytest.approx(40 / 25)
        assert [number_of(image) for _, image in video.read(range(40))] == list(range(40))
        assert [number_of(image) for _, image in video.read([0, 13, 39])] == [0, 13, 39]


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.avi", "libx264", {"bf": "2", "g": "12", "crf": "10", "sc_threshold": "0"}),
        ("a.mp4", "libx264", {"bf": "2", "g": "12", "crf": "10", "sc_threshold": "0"}),
        ("a.mkv", "libx264", {"bf": "2", "g": "12", "crf": "10", "sc_threshold": "0"}),
    ],
)
@pytest.mark.parametrize("damaged", [0, 30])
def test_damage_costs_what_leans_on_it_and_moves_no_number(tmp_path, name, codec, options, damaged):
    path = write_video(tmp_path / name, 96, codec, options)
    damage(path, [damaged])
    with Video(path) as video:
        read = dict(video.read_readable(video.numbers))
    good = {number for number, image in read.items() if not isinstance(image, InputError)}
    assert all(number_of(read[number]) == number for number in good if not damaged - 14 <= number < damaged + 14)
    assert len(good) >= 96 - 2 * 14


def test_nothing_is_given_after_damage_before_a_frame_that_leans_on_no_other(tmp_path):
    path = write_video(tmp_path / "a.avi", 96, "libx264", {"bf": "2", "g": "24", "crf": "10", "sc_threshold": "0"})
    damage(path, [30])
    with Video(path) as video:
        walked = [(number, image) for number, image in video.walk([95])]
    assert len(walked) >= 94 and number_of(walked[-1][1]) == 95  # what is passed over is told of, too


def cut_by_an_editor(clip, path, first):
    """Copy a video without decoding, and let an edit list begin it with a frame between two starts."""
    with av.open(str(clip)) as source, av.open(str(path), "w") as copy:
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                packet.stream = stream
                copy.mux(packet)
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 12  # version, flags and number of entries are before it
    duration, media_time = struct.unpack(">Ii", data[at : at + 8])
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        skipped = round(first / 25 / stream.time_base)
    shorter = duration - round(duration * first / 60)
    data[at : at + 8] = struct.pack(">Ii", shorter, media_time + skipped)
    path.write_bytes(data)


def test_a_video_that_was_trimmed_between_two_starts_has_all_that_is_shown(clip, tmp_path):
    cut_by_an_editor(clip, tmp_path / "trimmed.mp4", 5)
    with av.open(str(tmp_path / "trimmed.mp4")) as container:
        expected = [number_of(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    assert expected[0] > 2 and len(expected) >= 50
    with Video(tmp_path / "trimmed.mp4") as video:
        assert [number_of(image) for _, image in video.read(video.numbers)] == expected
        assert not video.breaks_off


def test_a_video_of_too_many_frames_is_left_as_they_are_counted(clip):
    with pytest.raises(InputError, match=r"more than 59 frames: cut it, or raise most_frames"):
        Video(clip, most_frames=59)
    with Video(clip, most_frames=60) as video:
        assert len(video.numbers) == 60


def test_an_avi_that_breaks_off_before_its_index_has_the_frames_before_the_break(tmp_path):
    for codec, options in (("mjpeg", {}), ("libx264", {"bf": "2", "g": "12", "crf": "10"})):
        path = write_video(tmp_path / "a.avi", 60, codec, options)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 9 // 10])
        with Video(path) as video:
            wanted = evenly_spaced(len(video.numbers) - 4, 6)
            assert len(video.numbers) >= 20 and video.breaks_off
            assert [number_of(image) for _, image in video.read(wanted)] == wanted


def test_frames_on_the_way_to_a_wanted_one_can_be_told_of(clip):
    with Video(clip) as video:
        read = [(number, image is not None) for number, image in video.walk([2, 15])]
    assert read == [(0, False), (1, False), (2, True), (12, False), (13, False), (14, False), (15, True)]


def test_frames_that_are_too_large_are_refused_before_they_are_decoded_or_handed_on(clip, monkeypatch):
    with pytest.raises(InputError, match=r"frames of .* have 128x64 pixels, more than 8,191"):
        Video(clip, most_pixels=WIDTH * HEIGHT - 1)
    monkeypatch.setattr(Video, "size", (1, 1))  # a header that lies
    with Video(clip, most_pixels=WIDTH * HEIGHT - 1) as video, pytest.raises(InputError, match="more than 8,191"):
        next(video.read([0]))
    with Video(clip, most_pixels=1000) as video, pytest.raises(InputError, match=r"cannot be decoded at frame 0"):
        next(video.read([0]))
