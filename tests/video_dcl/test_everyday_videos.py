"""Videos of kinds that people reported as read wrongly by other programs. What FFmpeg decodes is what is right."""

from fractions import Fraction

import av
import pytest

from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.media_dcl import find_files, is_video
from dcl_face_forgery.tests.shared.numbered_videos import number_of, read_packets, write_packets, write_video
from dcl_face_forgery.video_dcl import Video

H264 = {"g": "12", "bf": "2", "crf": "10"}
VP8 = {"deadline": "realtime", "g": "20", "b": "2M"}


def what_is_shown(path):
    """Return the numbers on the frames that FFmpeg decodes, in its order."""
    shown = []
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            try:
                shown += [number_of(frame.to_ndarray(format="rgb24")) for frame in packet.decode()]
            except av.FFmpegError:  # a player goes on
                continue
    return shown


def what_is_read(path):
    """Return the numbers on the frames that `Video` reads, which are the same in a row and one at a time."""
    with Video(path) as video:
        row = [number_of(image) for _, image in video.read(video.numbers)]
        single = [number_of(image) for number in video.numbers for _, image in video.read([number])]
        times = [video.time(number) for number in video.numbers]
    assert row == single
    assert times == sorted(times) and len(times) == len(row) and times[0] == 0
    return row


@pytest.mark.parametrize(("b_frames", "offset"), [("0", "0"), ("0", "0.02"), ("2", "0.5")])
def test_joined_recordings_are_read_one_after_the_other(tmp_path, b_frames, offset):
    """FFMS/ffms2#258, popcornmix/omxplayer#378: `cat a.mts b.mts`; the clock of the second one begins anew."""
    options, muxer = {**H264, "bf": b_frames}, {"output_ts_offset": offset}
    first = write_video(tmp_path / "a.ts", 30, options=options)
    second = write_video(tmp_path / "b.ts", 30, options=options, container_options=muxer, first=30)
    path = tmp_path / "joined.mts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    assert what_is_shown(path) == what_is_read(path) == list(range(60))
    with Video(path) as video:
        assert video.duration == pytest.approx(60 / 25, abs=0.05)


def test_frames_of_vp8_that_are_never_shown_are_not_counted(tmp_path):
    """FFMS/ffms2#88 and #293: WebM that libvpx wrote in two passes has alternate reference frames."""
    plain = write_video(tmp_path / "plain.webm", 40, "libvpx", VP8)
    packets = []
    for place, (data, pts, dts, key) in enumerate(read_packets(plain)):
        if place % 10 == 5:
            packets.append((bytes([data[0] & ~0x10]) + data[1:], pts - 39, dts - 39, False))
        packets.append((data, pts, dts, key))
    path = write_packets(tmp_path / "hidden.webm", packets, plain)
    assert what_is_shown(path) == what_is_read(path) == list(range(40))
    with Video(path) as video:
        assert video.time(39) == pytest.approx(39 / 25, abs=0.002)


@pytest.mark.parametrize("name", ["a.mp4", "a.flv", "a.mkv"])
def test_samples_that_hold_no_picture_are_not_counted(tmp_path, name):
    """ossrs/srs#4625: recorders of RTMP and drones store SEI messages and delimiters as samples of their own."""
    plain = write_video(tmp_path / "plain.mp4", 20, options={"g": "10", "bf": "0", "crf": "10"})
    message, delimiter = b"\0\0\0\x06\x06\x05\x02ab\x80", b"\0\0\0\x02\x09\xf0"
    packets = []
    for data, pts, dts, key in read_packets(plain):
        packets += [
            (data, pts, dts, key),
            (message, pts + 20, dts + 20, False),
            (delimiter, pts + 40, dts + 40, False),
        ]
    path = write_packets(tmp_path / name, packets, plain)
    assert what_is_shown(path) == what_is_read(path) == list(range(20))


def test_parameter_sets_in_samples_of_their_own_are_used(tmp_path):
    """ossrs/srs#4625, for HEVC, whose key frames cannot be decoded without what the samples before them hold."""
    options = {"x265-params": "keyint=10:bframes=2:crf=10:aud=1:repeat-headers=1:log-level=none"}
    plain = write_video(tmp_path / "plain.mp4", 30, "libx265", options)
    packets = []
    for data, pts, dts, key in read_packets(plain):
        at = 0  # of the first slice
        while data[at + 4] >> 1 >= 32:
            at += 4 + int.from_bytes(data[at : at + 4])
        assert at > 0
        packets += [(data[:at], pts - 20, dts - 20, False), (data[at:], pts, dts, key)]
    path = write_packets(tmp_path / "split.mkv", packets, plain)
    assert what_is_shown(path) == what_is_read(path) == list(range(30))


@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_stream_that_is_refreshed_bit_by_bit_has_all_its_frames(tmp_path, name, b_frames):
    """google/ExoPlayer#1654, Genymobile/scrcpy#5992, w3c/webcodecs#650: its key frames are recovery points.

    Decoders show nothing from such a point until the picture is complete, here after up to 21 frames.
    """
    options = {"x264-params": f"intra-refresh=1:keyint=20:bframes={b_frames}:crf=10"}
    path = write_video(tmp_path / name, 70, options=options, size=(640, 64))
    assert what_is_shown(path) == what_is_read(path) == list(range(70))
    cut = write_packets(tmp_path / f"cut-{name}", read_packets(path)[20:], path)
    shown = what_is_shown(cut)
    assert 36 < shown[0] < 44 and what_is_read(cut) == shown


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", {"x264-params": "open-gop=1:keyint=20:min-keyint=20:bframes=4:crf=10:scenecut=0"}),
        ("libx265", {"x265-params": "keyint=20:min-keyint=20:bframes=4:crf=10:scenecut=0:log-level=none"}),
    ],
)
@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_a_cut_without_decoding_begins_with_the_first_frame_that_is_shown(tmp_path, name, codec, options):
    """HandBrake/HandBrake#3926, facebookresearch/spdl#1236: cut at an open GOP, and between two key frames."""
    whole = write_video(tmp_path / "whole.mkv", 60, codec, options)
    packets = read_packets(whole)
    second = [place for place, packet in enumerate(packets) if packet[3]][1]
    for place in (second, 5):
        path = write_packets(tmp_path / name, packets[place:], whole)
        shown = what_is_shown(path)
        assert len(shown) > 35 and shown == list(range(shown[0], shown[0] + len(shown)))
        assert what_is_read(path) == shown


@pytest.mark.parametrize(
    ("codec", "options"), [("libx264", {**H264, "g": "20"}), ("mpeg2video", {"g": "20", "bf": "2", "qscale": "2"})]
)
def test_a_recording_that_begins_in_the_middle_has_the_frames_that_are_shown(tmp_path, codec, options):
    """Kitware/kwiver#1401: television, dashcams and AVCHD begin in the middle of a group of pictures."""
    data = write_video(tmp_path / "whole.ts", 60, codec, options).read_bytes()
    path = tmp_path / "middle.mts"
    path.write_bytes(data[: 188 * 3] + data[188 * (len(data) // 188 // 8) :])
    shown = what_is_shown(path)
    assert shown == list(range(shown[0], 60)) and 0 < shown[0] < 24
    assert what_is_read(path) == shown


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", H264),
        ("a.ts", "libx264", H264),
        ("a.mkv", "libx265", {"x265-params": "keyint=12:bframes=3:log-level=none"}),
        ("a.webm", "libvpx", VP8),
    ],
)
def test_opening_a_video_that_begins_with_a_key_frame_decodes_nothing(tmp_path, monkeypatch, name, codec, options):
    path = write_video(tmp_path / name, 30, codec, options)
    monkeypatch.setattr(Video, "_decode_packets", lambda self, container, stream: pytest.fail("decodes"))
    with Video(path) as video:
        assert len(video.numbers) == 30


def test_an_encrypted_video_is_called_so(tmp_path):
    """yt-dlp/yt-dlp#565: downloads of protected streams."""
    encryption = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "76" * 16, "encryption_kid": "a7" * 16}
    path = write_video(tmp_path / "a.mp4", 20, options=H264, container_options=encryption)
    with pytest.raises(InputError, match=r"a\.mp4 is encrypted\. Pass an unprotected copy\."):
        Video(path)


def test_raw_dv_is_a_video(tmp_path):
    """alexballas/go2tv#54, amiaopensource/vrecord#765: tapes are archived as raw DV."""
    ntsc = {"size": (720, 480), "pixels": "yuv411p", "rate": Fraction(30000, 1001)}
    path = write_video(tmp_path / "tape.dv", 10, "dvvideo", **ntsc)
    assert find_files(tmp_path) == [path] and is_video(path)
    assert what_is_read(path) == list(range(10))


def test_a_recording_of_a_browser_has_all_its_frames(tmp_path):
    """PyAV-Org/PyAV#1131, opencv/opencv#22571: MediaRecorder writes neither a duration nor cues."""
    muxer = {"live": "1", "cluster_time_limit": "500", "output_ts_offset": "7.3"}
    path = write_video(tmp_path / "a.webm", 40, "libvpx", VP8, container_options=muxer)
    assert what_is_read(path) == list(range(40))
    with Video(path) as video:
        assert video.time(39) == pytest.approx(39 / 25, abs=0.002)


def test_the_clock_of_a_transport_stream_may_begin_anew(tmp_path):
    """xbmc/xbmc#1509, videojs/mux.js#104: it does so every 26 hours."""
    muxer = {"output_ts_offset": str(2**33 / 90000 - 2.4)}
    path = write_video(tmp_path / "a.mts", 60, options=H264, container_options=muxer)
    assert what_is_read(path) == list(range(60))
    with Video(path) as video:
        assert video.duration == pytest.approx(60 / 25, abs=0.02)


def test_packed_frames_of_divx_are_counted_once(tmp_path):
    """AlexAltea/curator#9: DivX and XviD of the 2000s put two frames into a chunk and a frame of nothing after it."""
    plain = write_video(tmp_path / "plain.avi", 41, "mpeg4", {"bf": "1", "g": "12", "qscale": "2"})
    frames = [data for data, *_ in read_packets(plain)]
    kinds = ["IPBS"[data[data.find(b"\0\0\1\xb6") + 4] >> 6] for data in frames]
    chunks, place = [], 0
    while place < len(frames):
        if kinds[place : place + 2] == ["P", "B"]:
            chunks += [frames[place] + frames[place + 1], b"\0\0\1\xb6\x50\x5f"]
            place += 2
        else:
            chunks.append(frames[place])
            place += 1
    at = chunks[0].find(b"\0\0\1\xb6")
    chunks[0] = chunks[0][:at] + b"\0\0\1\xb2DivX503b1393p" + chunks[0][at:]
    packets = [(data, place, place, place == 0) for place, data in enumerate(chunks)]
    assert what_is_read(write_packets(tmp_path / "packed.avi", packets, plain)) == list(range(41))


def test_webcam_frames_without_huffman_tables_are_read(tmp_path):
    """etemesi254/zune-image#136, image-rs/jpeg-decoder#76: webcams leave the tables out of their MJPEG."""

    def without_tables(data):
        kept, at = data[:2], 2
        while data[at + 1] != 0xDA:
            size = int.from_bytes(data[at + 2 : at + 4]) + 2
            if data[at + 1] != 0xC4:
                kept += data[at : at + size]
            at += size
        return kept + data[at:]

    options = {"qscale": "2", "huffman": "default"}
    plain = write_video(tmp_path / "plain.avi", 20, "mjpeg", options, pixels="yuvj422p")
    packets = [(without_tables(data), *rest) for data, *rest in read_packets(plain)]
    assert b"\xff\xc4" not in packets[0][0]
    assert what_is_read(write_packets(tmp_path / "webcam.avi", packets, plain)) == list(range(20))


def test_an_avi_of_a_camera_that_lost_power_has_all_its_frames(tmp_path):
    """s60sc/ESP32-CAM_MJPEG2SD#381, HandBrake/HandBrake#439: it has neither sizes nor an index."""
    data = bytearray(write_video(tmp_path / "a.avi", 30, "mjpeg").read_bytes())
    del data[data.rindex(b"idx1") :]
    data[4:8] = bytes(4)
    data[data.index(b"movi") - 4 : data.index(b"movi")] = bytes(4)
    header, stream = data.index(b"avih"), data.index(b"strh")
    data[header + 24 : header + 28] = data[stream + 40 : stream + 44] = bytes(4)  # numbers of frames
    path = tmp_path / "lost.avi"
    path.write_bytes(data)
    assert what_is_read(path) == list(range(30))


@pytest.mark.parametrize(("name", "codec", "options"), [("a.mp4", "libx264", H264), ("a.webm", "libvpx", VP8)])
def test_frames_of_a_screen_recording_come_at_their_times(tmp_path, name, codec, options):
    """Genymobile/scrcpy#664: a screen that does not change gives no frame."""
    times = [0, 1, 2, 3, 500, 501, 502, 5000, *range(5033, 5033 + 32 * 33, 33)]
    path = write_video(tmp_path / name, 40, codec, options, times=times)
    assert what_is_read(path) == list(range(40))
    with Video(path) as video:
        assert [video.time(number) * 1000 for number in (4, 7, 39)] == pytest.approx([500, 5000, times[39]], abs=1)
