"""Frames of a video come by their number, whatever codec, order, rotation or damage."""

import io
import os
import shutil
import struct
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dcl_face_forgery import video_dcl
from dcl_face_forgery.errors_dcl import InputError, reason
from dcl_face_forgery.media_dcl import content_kind, file_kind
from dcl_face_forgery.tests.shared.numbered_videos import HEIGHT, WIDTH, number_of, numbered, write_video
from dcl_face_forgery.tests.shared.raw_data_sets import encode_sizes
from dcl_face_forgery.video_dcl import VIDEO_SUFFIXES, PacketReader, Video, _end_of_matroska, evenly_spaced


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


def test_decoder_threads_never_wait_for_the_interpreter_to_log(clip):
    """They could do so for ever: who frees a decoder waits for its threads, and holds the interpreter meanwhile."""
    video_dcl._silence_pyav.cache_clear()
    av.logging.set_level(av.logging.ERROR)  # as an import of torchvision 0.24 does
    with Video(clip):
        assert av.logging.get_level() is None


def test_a_log_level_that_the_caller_sets_later_is_kept(clip):
    with Video(clip):
        pass
    av.logging.set_level(av.logging.ERROR)
    try:
        with Video(clip):
            assert av.logging.get_level() == av.logging.ERROR
    finally:
        av.logging.set_level(None)


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
        ("a.mxf", "mpeg2video", {"g": "12", "bf": "2", "qscale": "2"}),
        ("a.mxf", "libx264", {"g": "12", "bf": "2", "crf": "10"}),
        ("a.ogv", "libvpx", {"g": "12", "deadline": "realtime", "crf": "10", "b": "1M"}),
        ("a.m2ts", "libx264", {"g": "12", "bf": "2", "crf": "10"}),
        ("a.hevc", "libx265", {"x265-params": "keyint=12:bframes=3:crf=10:log-level=0"}),
        ("a.m1v", "mpeg1video", {"g": "12", "bf": "2", "qscale": "2"}),
        ("a.h264", "libx264", {"g": "12", "bf": "2", "crf": "10"}),
        ("a.webm", "libvpx", {"g": "12", "deadline": "realtime", "crf": "10", "b": "1M"}),
        ("a.mp4", "libx265", {"x265-params": "keyint=12:bframes=3:crf=10:log-level=0"}),
    ],
)
def test_numbers_hold_for_the_usual_codecs(tmp_path, name, codec, options):
    path = write_video(tmp_path / name, 40, codec, options)
    assert file_kind(path) == "video"
    with Video(path) as video:
        assert len(video.numbers) == 40 and video.duration == pytest.approx(40 / 25, abs=0.03)
        assert [number_of(image) for _, image in video.read(range(40))] == list(range(40))
        wanted = [0, 13, 14, 27, 39]
        assert [number_of(image) for _, image in video.read(wanted)] == wanted


def test_one_video_can_be_read_twice(clip):
    with Video(clip) as video:
        first, second = ([number_of(image) for _, image in video.read([3, 50])] for _ in range(2))
    assert first == second == [3, 50]


@pytest.mark.parametrize("with_lengths", [True, False])
def test_few_units_of_a_packet_are_looked_at(with_lengths):
    record = b"\1\x64\0\x1f\xff" if with_lengths else b""
    context = SimpleNamespace(codec=SimpleNamespace(canonical_name="h264"), extradata=record)
    reader = PacketReader(SimpleNamespace(codec_context=context))
    start = b"\0\0\0\2" if with_lengths else b"\0\0\0\1"
    filler, picture = start + b"\x0c\x80", start + b"\x65\x80"

    def told(data):
        packet = av.Packet(data)
        packet.is_keyframe = True
        return reader.holds_picture(packet), reader.is_clean_start(packet)

    assert told(picture) == told(63 * filler + picture) == (True, True)
    assert told(10_000 * filler + picture) == told(10_000 * filler) == (True, False)  # the decoder is to tell
    assert told(3 * filler) == (not with_lengths, False)  # without lengths, FFmpeg puts what goes with it together


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
    with pytest.raises(InputError, match=r"a\.avi.*Copy or download it again"), Video(path) as video:
        for index, image in video.read(range(30)):
            read.append((index, number_of(image)))
    assert len(read) >= 10
    assert all(index == number for index, number in read)


def test_what_is_no_video_is_refused(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"no video at all" * 100)
    with pytest.raises(InputError, match=r"Video .*a\.mp4 cannot be opened .*Copy or download it again"):
        Video(path)


@pytest.mark.parametrize("suffix", sorted(VIDEO_SUFFIXES))
def test_an_empty_file_is_called_so(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.touch()
    with pytest.raises(InputError, match=rf"Video .*a\{suffix} is empty\. Copy or download it again\.$"):
        Video(path)


def test_the_reason_that_ffmpeg_gives_has_no_number_and_no_path(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"\0\0\0\x18ftypmp42" + b"\xff" * 500)
    with pytest.raises(InputError) as refusal:
        Video(path)
    assert reason(refusal.value) == "Invalid data found when processing input"


def test_sound_alone_is_refused(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(InputError, match="contains no video track"):
        Video(path)


def test_size_times_and_duration_are_those_of_the_frames(clip, tmp_path):
    with Video(clip) as video:
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
    with pytest.raises(InputError, match=r"more than 59 frames\. Cut it, or raise most_frames"):
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


def test_a_matroska_breaks_off_if_its_header_announces_more(tmp_path):
    for name, codec, muxer in (
        ("a.mkv", "libx264", {}),
        ("a.webm", "libvpx", {}),
        ("b.webm", "libvpx", {"live": "1"}),
    ):
        path = write_video(tmp_path / name, 30, codec, {"g": "10"}, container_options=muxer)
        with Video(path) as video:
            assert not video.breaks_off
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
        with Video(path) as video:
            assert video.breaks_off == (not muxer)  # live recordings announce no size


@given(st.binary(max_size=12))
@settings(max_examples=200)
def test_any_bytes_after_the_mark_of_a_segment_are_taken(rest):
    assert _end_of_matroska(b"head") == _end_of_matroska(b"head\x18\x53\x80\x67") == 0
    assert _end_of_matroska(b"head\x18\x53\x80\x67\x81" + rest) == 10
    assert _end_of_matroska(b"head\x18\x53\x80\x67\xff" + rest) == 0
    assert _end_of_matroska(b"head\x18\x53\x80\x67\0" + rest) == 0
    assert 0 <= _end_of_matroska(b"head\x18\x53\x80\x67" + rest) < 2**57


@pytest.mark.parametrize("interlaced", [True, False])
def test_only_a_second_field_is_shown_by_the_frame_before_it(tmp_path, monkeypatch, interlaced):
    options = {"x264-params": f"interlaced={int(interlaced)}:bframes=0:crf=10"}
    path = write_video(tmp_path / "a.mp4", 12, options=options)
    original = Video._decode_from
    lost = range(1, 12, 2) if interlaced else [5, 11]  # a decoder returns a frame for the first field of each

    def with_gaps(self, start):
        return ((number, frame) for number, frame in original(self, start) if number not in lost)

    monkeypatch.setattr(Video, "_decode_from", with_gaps)
    with Video(path) as video:
        read = [
            None if isinstance(image, InputError) else number_of(image) for _, image in video.read_readable(range(12))
        ]
    assert read == [
        number - number % 2 if interlaced else number if number not in lost else None for number in range(12)
    ]


def test_frames_on_the_way_to_a_wanted_one_can_be_told_of(clip):
    with Video(clip) as video:
        read = [(number, image is not None) for number, image in video.walk([2, 15])]
    assert read == [(0, False), (1, False), (2, True), (12, False), (13, False), (14, False), (15, True)]


def test_frames_that_are_too_large_are_refused_before_they_are_decoded_or_handed_on(clip, monkeypatch):
    with pytest.raises(InputError, match=r"frames of .* have 128x64 pixels, more than 8,191"):
        Video(clip, most_pixels=WIDTH * HEIGHT - 1)
    monkeypatch.setattr(Video, "_claimed_size", lambda self: (1, 1))  # a header that lies
    with Video(clip, most_pixels=WIDTH * HEIGHT - 1) as video, pytest.raises(InputError, match="more than 8,191"):
        next(video.read([0]))
    with Video(clip, most_pixels=1000) as video, pytest.raises(InputError, match=r"cannot be decoded at frame 0"):
        next(video.read([0]))


PATTERN = np.random.default_rng(0).integers(40, 216, (3, 5, 3)).astype(np.uint8).repeat(16, 0).repeat(16, 1)


def write_frames(path, images, codec="libx264", pix_fmt="yuv444p", options=None, shape=None, **tags):
    """Write RGB images, or frames that are given as they are."""
    if options is None:
        options = {"crf": "4"} if codec == "libx264" else {}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        for image in images:
            frame = image if isinstance(image, av.VideoFrame) else av.VideoFrame.from_ndarray(image, format="rgb24")
            if not stream.codec_context.is_open:  # by the first frame
                stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, pix_fmt
                for name, value in tags.items():
                    setattr(stream.codec_context, name, value)
                if shape:
                    stream.codec_context.sample_aspect_ratio = shape
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def with_matrix(path, a, b, c, d):
    """Write a display matrix into the header of an MP4 with one track."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def the_frame(path, number=0, **how):
    """Return a frame and the notes of a video."""
    with Video(path, **how) as video:
        ((_, image),) = video.read([number])
        return image, video.notes


def distance(image, other):
    assert image.shape == other.shape
    return np.abs(image.astype(float) - other).mean()


@pytest.mark.parametrize(
    ("matrix", "turned"),
    [  # as FFmpeg's command line turns them
        ((1, 0, 0, 1), lambda image: image),
        ((-1, 0, 0, 1), np.fliplr),
        ((1, 0, 0, -1), np.flipud),
        ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
        ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
        ((0, -1, 1, 0), lambda image: np.rot90(image, 1)),
        ((0, 1, 1, 0), lambda image: image.transpose(1, 0, 2)),
        ((0, -1, -1, 0), lambda image: np.rot90(image, 2).transpose(1, 0, 2)),
    ],
)
def test_every_display_matrix_gives_the_upright_picture(tmp_path, matrix, turned):
    path = with_matrix(write_frames(tmp_path / "a.mp4", [PATTERN]), *(part << 16 for part in matrix))
    image, notes = the_frame(path)
    assert distance(image, turned(PATTERN)) < 4
    assert notes == []


def test_a_turn_by_an_odd_angle_becomes_the_nearest_quarter_turn_and_is_noted(tmp_path):
    one = 1 << 16
    for angle, turns, noted in ((100, -1, True), (30, 0, True), (-80, 1, True), (0.5, 0, False), (179.5, 2, False)):
        cosine, sine = round(one * np.cos(np.radians(angle))), round(one * np.sin(np.radians(angle)))
        path = with_matrix(write_frames(tmp_path / "a.mp4", [PATTERN]), cosine, sine, -sine, cosine)
        image, notes = the_frame(path)
        assert distance(image, np.rot90(PATTERN, turns)) < 4
        assert (
            notes
            == ["The header asks for a rotation that is not a multiple of 90 degrees; the nearest one was used."]
            * noted
        )


def test_frames_whose_extra_data_pyav_does_not_know_are_read_and_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    encoded = io.BytesIO()
    Image.fromarray(PATTERN).save(encoded, "JPEG", exif=exif, quality=95)
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = *PATTERN.shape[:2], "yuvj420p"
        packet = av.Packet(encoded.getvalue())
        packet.stream, packet.pts, packet.dts = stream, 0, 0
        container.mux(packet)
    image, _ = the_frame(tmp_path / "a.avi")
    assert distance(image[8:-8:16, 8:-8:16], np.rot90(PATTERN, -1)[8:-8:16, 8:-8:16]) < 12


def write_tracks(path, *tracks):
    """Write video tracks, each of a width, a grey, a number of frames and a disposition."""
    with av.open(str(path), "w") as container:
        streams = []
        for width, grey, frames, disposition in tracks:
            attached = disposition == av.stream.Disposition.attached_pic
            stream = container.add_stream("mjpeg" if attached else "libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = width, 48, "yuvj420p" if attached else "yuv420p"
            stream.disposition = disposition
            streams.append((stream, grey, frames))
        for stream, grey, frames in streams:
            image = np.full((48, stream.width, 3), grey, np.uint8)
            for _ in range(frames):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("name", "tracks", "chosen", "noted"),
    [
        ("a.mkv", [(64, 60, 3, 0), (128, 200, 3, 0)], 200, 2),
        ("a.mkv", [(128, 200, 3, 0), (64, 60, 3, 0)], 200, 1),
        ("a.mkv", [(128, 60, 3, 0), (64, 200, 3, 1)], 200, 2),  # the default one
        ("a.mkv", [(128, 60, 0, 1), (64, 200, 3, 0)], 200, None),  # the other one is empty
        ("a.mkv", [(64, 60, 3, 0), (128, 60, 0, 1), (96, 200, 3, 0)], 200, 2),
        ("a.mp4", [(640, 60, 1, 1024), (64, 200, 3, 1)], 200, None),  # a cover picture
    ],
)
def test_the_track_that_ffmpeg_would_choose_is_read(tmp_path, name, tracks, chosen, noted):
    tracks = [(*track[:3], av.stream.Disposition(track[3])) for track in tracks]
    image, notes = the_frame(write_tracks(tmp_path / name, *tracks))
    assert abs(image.mean() - chosen) < 6
    assert notes == ([] if noted is None else [f"The video has 2 video tracks; only track {noted} was analyzed."])


def test_tracks_are_told_apart_where_frames_are_counted_without_times(tmp_path):
    tracks = [(64, 60, 5, av.stream.Disposition(0)), (128, 200, 3, av.stream.Disposition(0))]
    with Video(write_tracks(tmp_path / "a.ts", *tracks)) as video:
        assert len(video.numbers) == 3
        assert all(image.shape == (48, 128, 3) for _, image in video.read(video.numbers))


def test_a_cover_picture_is_no_video(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=25)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        sound = container.add_stream("aac", rate=8000, layout="mono")
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 9, np.uint8), format="rgb24")))
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        samples.rate = 8000
        for stream, data in ((sound, samples), (sound, None), (cover, None)):
            container.mux(stream.encode(data))
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    with pytest.raises(InputError, match="contains no video track"):
        Video(path)


def test_every_legal_name_opens_that_very_file(tmp_path, monkeypatch):
    right, wrong = (
        write_frames(tmp_path / f"{grey}.mp4", [np.full((48, 64, 3), grey, np.uint8)]) for grey in (200, 40)
    )
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for other in ("a.mp4", "b.mp4", "1.mp4", "01.mp4", "x.mp4"):
        shutil.copy(wrong, other)
    names = [
        "12:30.mp4",
        "file:a.mp4",
        "http:x.mp4",
        "concat:a.mp4|b.mp4",
        "%d.mp4",
        "%02d.mp4",
        "-i.mp4",
        "fd:",
        "pipe:0",
    ]
    names += ["crypto:a.mp4", "subfile,,start,0,end,9,,:a.mp4", "a.mp4?b#c", " a.mp4", "~a.mp4", "*.mp4", "a\nb.mp4"]
    names += ["-", "ä.mp4", os.fsdecode(b"\xff\xfe.mp4")]
    for name in names:
        shutil.copy(right, name)
        for path in (name, tmp_path / "work" / name):
            image, _ = the_frame(path)
            assert image.mean() > 150, name
        os.remove(name)
        with pytest.raises(InputError, match="cannot be opened"):
            Video(name)


def test_a_path_through_a_link_is_followed_as_the_system_does(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "er")
    for place, grey in (("a.mp4", 40), ("deep/a.mp4", 200)):
        write_frames(tmp_path / place, [np.full((48, 64, 3), grey, np.uint8)])
    image, _ = the_frame(tmp_path / "link" / ".." / "a.mp4")
    assert image.mean() > 150


def test_a_playlist_opens_no_other_file(tmp_path):
    write_frames(tmp_path / "secret.ts", [PATTERN])
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.ts\n#EXT-X-ENDLIST\n"
    for name, content in (
        ("a.mp4", playlist),
        ("b.m3u8", playlist),
        ("c.mp4", f"ffconcat version 1.0\nfile '{tmp_path / 'secret.ts'}'\n"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match="cannot be opened"):
            Video(tmp_path / name)


def test_a_reference_to_the_data_of_another_file_is_not_followed(tmp_path):
    """A MOV whose data lie in another file has none. FFmpeg would open that file if it were told to."""
    secret = write_frames(tmp_path / "secret.mp4", [PATTERN] * 3)
    path = tmp_path / "a.mov"
    data = bytearray(write_frames(tmp_path / "a.mov", [PATTERN] * 3).read_bytes())
    name = str(secret).encode()
    alias = (
        bytes(10) + b"\x01v".ljust(28, b"\0") + bytes(12) + bytes([10]) + b"secret.mp4".ljust(63, b"\0") + bytes(16)
    )
    alias += struct.pack(">hh", 0, 1) + bytes(16)
    alias += struct.pack(">hh", 2, len(name)) + name + bytes(len(name) % 2) + struct.pack(">hh", -1, 0)
    at = data.rindex(b"dref") + 12  # after version, flags and number of entries
    entry = struct.pack(">I4sI", 12 + len(alias), b"alis", 0) + alias
    longer = len(entry) - struct.unpack(">I", data[at : at + 4])[0]
    data[at : at + struct.unpack(">I", data[at : at + 4])[0]] = entry
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        start = data.rindex(box, 0, at) - 4
        data[start : start + 4] = struct.pack(">I", struct.unpack(">I", data[start : start + 4])[0] + longer)
    path.write_bytes(data)
    with av.open(str(path), options={"enable_drefs": "1", "use_absolute_path": "1"}) as container:
        assert len([packet for packet in container.demux(video=0) if packet.size]) == 3  # the reference is a good one
    with pytest.raises(InputError, match="contains no frames"):
        Video(path)


def smooth(width, height):
    """A picture that looks the same at every size: gradients and soft waves."""
    y, x = np.mgrid[0:height, 0:width] / [[[height]], [[width]]]
    waves = [128 + 80 * np.sin(6 * x + 3 * y), 128 + 80 * np.cos(7 * y - 2 * x), 60 + 120 * x * y]
    return np.stack(waves, axis=2).round().astype(np.uint8)


def test_one_picture_coded_with_four_shapes_of_pixels_looks_the_same(tmp_path):
    shapes = {Fraction(1): (256, 192), Fraction(4, 3): (192, 192), Fraction(1, 2): (256, 96), Fraction(2): (128, 192)}
    for shape, coded in shapes.items():
        for name in ("a.mp4", "a.mkv", "a.ts"):
            path = write_frames(tmp_path / name, [smooth(*coded)], shape=shape, pix_fmt="yuv420p")
            image, notes = the_frame(path)
            assert image.shape == (192, 256, 3) and distance(image, smooth(256, 192)) < 3
            said = f"{shape.numerator}:{shape.denominator}"
            said = f"Pixels are not square ({said}); the frames were stretched to square pixels."
            assert notes == [said] * (shape != 1)


def test_pixels_are_made_square_before_the_picture_is_turned(tmp_path):
    path = write_frames(tmp_path / "a.mp4", [smooth(128, 192)], shape=Fraction(2))
    image, _ = the_frame(with_matrix(path, 0, 1 << 16, -1 << 16, 0))
    assert distance(image, np.rot90(smooth(256, 192), -1)) < 3


@pytest.mark.parametrize(
    ("shape", "noted"), [(Fraction(1280, 1281), False), (Fraction(1, 50), True), (Fraction(9), True)]
)
def test_pixels_that_are_nearly_square_or_cannot_be_so_are_left_alone(tmp_path, shape, noted):
    image, notes = the_frame(write_frames(tmp_path / "a.mp4", [PATTERN], shape=shape))
    assert distance(image, PATTERN) < 4
    sentence = f"The pixel shape in the header ({shape.numerator}:{shape.denominator}) is implausible and was ignored."
    assert notes == [sentence] * noted


def test_the_limit_of_pixels_is_for_the_frames_that_are_given(tmp_path):
    path = write_frames(tmp_path / "a.mp4", [smooth(128, 96)], shape=Fraction(2))
    with pytest.raises(InputError, match="have 256x96 pixels, more than 24,575"):
        Video(path, most_pixels=256 * 96 - 1)
    Video(path, most_pixels=256 * 96).close()


MATRICES = {
    "bt709": (0.2126, 0.0722),
    "smpte170m": (0.299, 0.114),
    "smpte240m": (0.212, 0.087),
    "bt2020nc": (0.2627, 0.0593),
}
PATCHES = np.array([[200, 60, 50], [60, 190, 70], [50, 70, 200], [180, 140, 120], [30, 30, 30], [225, 225, 225]])


def coded(matrix, full, bits=8, size=(96, 64), patches=PATCHES / 255):
    """Code patches of R'G'B' in [0, 1] by the book: a YCbCr 4:4:4 frame, without any library."""
    red, blue = MATRICES[matrix]
    luma = patches @ [red, 1 - red - blue, blue]
    planes = [luma, (patches[:, 2] - luma) / (2 - 2 * blue), (patches[:, 0] - luma) / (2 - 2 * red)]
    scales = [(255, 0), (255, 128), (255, 128)] if full else [(219, 16), (224, 128), (224, 128)]
    frame = av.VideoFrame(*size, f"yuv444p{bits}le" if bits > 8 else "yuv444p")
    for plane, values, (scale, offset) in zip(frame.planes, planes, scales, strict=True):
        row = np.repeat(values * scale + offset, -(-size[0] // len(patches)))[: size[0]] * 2 ** (bits - 8)
        lines = np.zeros((size[1], plane.line_size // (2 if bits > 8 else 1)), np.uint16 if bits > 8 else np.uint8)
        lines[:, : size[0]] = row.round()
        plane.update(lines.tobytes())
    return frame


def patches_of(image):
    width = image.shape[1] // len(PATCHES)
    return np.array(
        [image[8:-8, place * width + 4 : (place + 1) * width - 4].mean((0, 1)) for place in range(len(PATCHES))]
    )


def x264(matrix=None, full=False):
    return {
        "x264-params": f"crf=1:fullrange={'on' if full else 'off'}" + f":colormatrix={matrix}" * (matrix is not None)
    }


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", MATRICES)
def test_colours_are_those_that_were_coded_whatever_the_matrix_and_the_range(tmp_path, matrix, full):
    tags = {"color_range": 2 if full else 1}
    path = write_frames(tmp_path / "a.mp4", [coded(matrix, full)], options=x264(matrix, full), **tags)
    image, notes = the_frame(path)
    assert np.abs(patches_of(image) - PATCHES).max() < 3 and notes == []


@pytest.mark.parametrize(
    ("size", "matrix"),
    [((720, 576), "smpte170m"), ((480, 360), "smpte170m"), ((1280, 720), "bt709"), ((720, 1280), "bt709")],
)
def test_colours_of_a_video_that_does_not_say_its_matrix_follow_from_its_size(tmp_path, size, matrix):
    path = write_frames(tmp_path / "a.mp4", [coded(matrix, False, size=size)], options=x264())
    image, notes = the_frame(path)
    assert np.abs(patches_of(image) - PATCHES).max() < 3 and notes == []


def test_a_matrix_that_cannot_be_converted_is_noted(tmp_path):
    for matrix, number in (("ycgco", 8), ("ictcp", 14)):
        path = write_frames(tmp_path / "a.mp4", [coded("bt709", False)], options=x264(matrix))
        _, (note,) = the_frame(path)
        assert note.startswith(f"The video's colour matrix (number {number} of ITU-T H.273) is not supported; ")


def test_colours_that_claim_to_be_rgb_and_are_not_are_read(tmp_path):
    path = write_frames(tmp_path / "a.mp4", [smooth(96, 64)], pix_fmt="yuv420p", options=x264("GBR"))
    image, _ = the_frame(path)
    assert distance(image, smooth(96, 64)) < 4


def x265(transfer, primaries="bt2020", matrix="bt2020nc", more=""):
    """Return options for HEVC, which is written as MPEG-TS here: the MP4 writer refuses it once in a hundred times."""
    tags = f"colorprim={primaries}:transfer={transfer}:colormatrix={matrix}"
    return {"x265-params": f"lossless=1:log-level=none:range=limited:{tags}{more}"}


def linear(patches):
    """Return the light of sRGB codes in [0, 1]."""
    return np.where(patches <= 0.04045, patches / 12.92, ((patches + 0.055) / 1.055) ** 2.4)


BT2020_OF_BT709 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
P3_OF_BT709 = np.array([[0.8225, 0.1774, 0.0], [0.0332, 0.9669, 0.0], [0.0171, 0.0724, 0.9108]])


def pq(nits):
    root = (nits / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * root) / (1 + 18.6875 * root)) ** 78.84375


def hlg(nits):
    scene = nits / 1000
    scene = scene * ((scene @ [0.2627, 0.6780, 0.0593]) ** (1 / 1.2 - 1))[..., None]
    return np.where(
        scene <= 1 / 12,
        np.sqrt(3 * scene),
        0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073,
    )


@pytest.mark.parametrize(("name", "transfer", "curve"), [("PQ", "smpte2084", pq), ("HLG", "arib-std-b67", hlg)])
def test_hdr_is_tone_mapped_to_about_what_it_was_made_from(tmp_path, name, transfer, curve):
    """SDR white is 203 cd/m2 in HDR. Middle tones stay; the brightest are compressed to leave room for highlights."""
    codes = curve(203 * linear(PATCHES / 255) @ BT2020_OF_BT709.T)
    frame = coded("bt2020nc", False, bits=10, patches=codes)
    path = write_frames(tmp_path / "a.ts", [frame], "libx265", "yuv444p10le", x265(transfer))
    image, notes = the_frame(path)
    seen = patches_of(image)
    assert notes == [f"Tone-mapped from HDR ({name}) to SDR."]
    dark = PATCHES.max(axis=1) < 185  # below the knee
    assert dark.sum() >= 2 and np.abs(seen - PATCHES)[dark].max() < 4
    assert np.abs(seen - PATCHES).max() < 24 and seen[-1].mean() > 200
    assert np.abs(seen[-1] - seen[-1].mean()).max() < 2  # grey stays grey


def test_highlights_of_hdr_are_told_apart_and_follow_the_peak_that_the_video_claims(tmp_path):
    nits = np.array([50, 203, 400, 700, 1000, 4000])[:, None].repeat(3, 1)
    seen = {}
    for peak in (0, 1000, 4000):
        frame = coded("bt2020nc", False, bits=10, patches=pq(nits))
        options = x265("smpte2084", more=f":max-cll={peak},200" * (peak > 0))
        image, _ = the_frame(write_frames(tmp_path / "a.ts", [frame], "libx265", "yuv444p10le", options))
        seen[peak] = patches_of(image).mean(axis=1)
    assert np.allclose(seen[0], seen[1000])
    assert (np.diff(seen[1000][:4]) > 4).all() and seen[1000][4] > 253
    assert (np.diff(seen[4000][:5]) > 4).all() and seen[4000][5] > 253
    assert (seen[4000][1:4] < seen[1000][1:4] - 8).all()  # there is more above them


@pytest.mark.parametrize(
    ("primaries", "matrix", "wider"), [("bt2020", "bt2020nc", BT2020_OF_BT709), ("smpte432", "bt709", P3_OF_BT709)]
)
def test_wide_gamuts_are_converted(tmp_path, primaries, matrix, wider):
    light = linear(PATCHES / 255) @ wider.T
    codes = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    frame = coded(matrix, False, bits=10, patches=codes)
    options = x265("bt709", primaries, matrix)
    image, notes = the_frame(write_frames(tmp_path / "a.ts", [frame], "libx265", "yuv444p10le", options))
    assert np.abs(patches_of(image) - PATCHES).max() < 3 and notes == []


def test_dolby_vision_without_a_base_layer_is_noted(monkeypatch):
    """Its frames say no matrix, and have Dolby's data beside them."""
    notes = []
    video_dcl.to_rgb(coded("bt709", False, bits=10), 96, 64, notes.append)
    assert notes == []
    monkeypatch.setattr(video_dcl, "side_data", lambda frame: {"DOVI_RPU_BUFFER": b""})
    video_dcl.to_rgb(coded("bt709", False, bits=10), 96, 64, notes.append)
    assert notes == ["The video is Dolby Vision without a standard base layer; its colours may be wrong."]
    named = coded("bt709", False, bits=10)
    named.colorspace = 1  # what can be shown without Dolby's data
    video_dcl.to_rgb(named, 96, 64, notes.append)
    assert len(notes) == 1


def test_what_is_transparent_becomes_white(tmp_path):
    image = np.dstack([PATTERN, np.full(PATTERN.shape[:2], 255, np.uint8)])
    image[:16, :, 3], image[16:32, :, 3] = 0, 127
    frame = av.VideoFrame.from_ndarray(image, format="rgba")
    seen, _ = the_frame(write_frames(tmp_path / "a.mov", [frame], "png", "rgba"))
    assert (seen[:16] == 255).all() and (seen[32:] == PATTERN[32:]).all()
    assert distance(seen[16:32], PATTERN[16:32] * 0.498 + 255 * 0.502) < 1
    opaque = image.copy()
    opaque[..., 3] = 255
    frame = av.VideoFrame.from_ndarray(opaque, format="rgba").reformat(format="yuva444p10le", dst_colorspace="itu709")
    seen, _ = the_frame(write_frames(tmp_path / "b.mov", [frame], "prores_ks", "yuva444p10le", colorspace=1))
    assert distance(seen, PATTERN) < 6


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("a.mp4", "libx264", "yuv420p10le"),
        ("a.ts", "libx265", "yuv420p12le"),
        ("a.mov", "prores_ks", "yuv422p10le"),
        ("a.mkv", "ffv1", "gbrp10le"),
        ("a.mov", "qtrle", "rgb24"),
        ("a.avi", "mjpeg", "yuvj420p"),
    ],
)
def test_more_bits_and_other_kinds_of_colour_show_the_same_picture(tmp_path, name, codec, pix_fmt):
    options = {"crf": "4"} | ({"x265-params": "log-level=none"} if codec == "libx265" else {})
    image, notes = the_frame(write_frames(tmp_path / name, [smooth(96, 64)], codec, pix_fmt, options))
    assert distance(image, smooth(96, 64)) < 3 and notes == []


def test_grey_videos_are_grey(tmp_path):
    grey = smooth(96, 64)[..., :1].repeat(3, 2)
    image, _ = the_frame(write_frames(tmp_path / "a.mkv", [grey], "libx264", "gray", color_range=2))
    assert (image == image[..., :1]).all() and distance(image, grey) < 3


def write_sizes(path, *sizes, frames=5):
    return encode_sizes(path, [smooth(*size) for size in sizes for _ in range(frames)])


def test_frames_keep_their_own_size_where_it_changes_midway(tmp_path):
    path = write_sizes(tmp_path / "a.webm", (320, 240), (160, 120), (320, 240), (80, 60))
    with Video(path) as video:
        sizes = [(image.shape[1], image.shape[0]) for _, image in video.read(video.numbers)]
        assert sizes == [(320, 240)] * 5 + [(160, 120)] * 5 + [(320, 240)] * 5 + [(80, 60)] * 5
        assert video.notes == ["The frame size changes from 320x240 to 160x120; boxes refer to 320x240."]
    with Video(path) as video:
        assert [image.shape for _, image in video.read([1, 12])] == [(240, 320, 3)] * 2
        assert video.notes == []


def test_a_frame_that_grows_midway_is_refused_if_it_is_too_large(tmp_path):
    path = write_sizes(tmp_path / "a.webm", (80, 60), (320, 240))
    with Video(path, most_pixels=160 * 120) as video:
        read = dict(video.read_readable(video.numbers))
    refused = [number for number, image in read.items() if isinstance(image, InputError)]
    assert refused == [5, 6, 7, 8, 9]


def test_what_looks_like_the_start_of_a_video_and_is_none_is_told_apart():
    code = b"export const GREETING = 'hello';\n" * 20
    assert content_kind(code[:512]) == "no picture"
    assert content_kind(b"GET / HTTP/1.1\r\n".ljust(512, b"x")) == "no picture"
    assert {".ts", ".m2t", ".m2ts", ".mts", ".m2v", ".mpe", ".qt", ".3g2", ".f4v", ".asf", ".mxf"} <= VIDEO_SUFFIXES
    assert not {".ogg", ".m4a", ".mka", ".wma", ".heic", ".avif"} & VIDEO_SUFFIXES
