"""`rnc predict` on a small checkpoint and drawn scenes; expected values come from `model.load`."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

import model
from model.config import InferenceConfig, TrainConfig
from model.data.coco import read_coco
from model.data.files import decoding
from model.data.split import CocoData
from model.inference import video
from model.inference.video import Frame, VideoWriter, open_film
from orchestrator.checkpoint.prediction import run
from orchestrator.cli.main import cli
from tests.detectors import MODEL, SIZES, save_opinionated, write_inference


@pytest.fixture
def data(shapes_root: Path) -> CocoData:
    return read_coco(shapes_root, "val", num_images=5)


@pytest.fixture
def folder(data: CocoData, tmp_path: Path) -> Path:
    config = TrainConfig(model=MODEL, data=replace(SIZES, num_val_images=5))
    folder = save_opinionated(tmp_path / "pulled", (data.category_ids, data.category_names), config)
    write_inference(folder, InferenceConfig(confidence_exponent=0.3, nms_iou=0.6))
    return folder


def rnc(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def refused(result: Result, *said: str) -> None:
    assert result.exit_code == 2, result.output
    for text in said:
        assert text in result.stderr


def test_pictures_come_out_with_boxes_and_their_detections_as_coco(
    folder: Path, data: CocoData, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(3):
        (photos / f"{index}.jpg").write_bytes(data.path(index).read_bytes())
    done = rnc("predict", folder, photos / "2.jpg", photos, photos / "*.jpg", "--out", out, "--score", 0.4)
    assert done.exit_code == 0, done.output
    assert {file.name for file in out.iterdir()} == {"0.jpg", "1.jpg", "2.jpg", "detections.json"}
    content = json.loads((out / "detections.json").read_text())
    order = [photos / "2.jpg", photos / "0.jpg", photos / "1.jpg"]
    assert [(image["id"], image["file_name"]) for image in content["images"]] == [
        (place, str(file)) for place, file in enumerate(order, start=1)
    ]
    for place, found in enumerate(model.load(folder)(order), start=1):
        kept = found.above(0.4)
        rows = [row for row in content["annotations"] if row["image_id"] == place]
        assert [row["score"] for row in rows] == kept.scores.tolist()
        corners = np.array([row["bbox"] for row in rows]).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        np.testing.assert_allclose(corners, kept.boxes, rtol=0, atol=1e-4)
        assert [row["category_id"] for row in rows] == list(kept.category_ids)
        image = content["images"][place - 1]
        assert (image["height"], image["width"]) == found.size
    assert len(content["annotations"]) == len({row["id"] for row in content["annotations"]}) > 3
    assert [one["name"] for one in content["categories"]] == list(data.category_names)


def test_a_broken_image_is_named_and_the_others_are_done(folder: Path, data: CocoData, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(data.path(0).read_bytes()[:300])
    (tmp_path / "text.png").write_text("no image")
    out = tmp_path / "out"
    done = rnc("predict", folder, tmp_path / "broken.jpg", data.path(1), tmp_path / "text.png", "--out", out)
    assert done.exit_code == 1
    assert f"skipped {tmp_path / 'broken.jpg'}: the image does not decode" in done.stderr
    assert f"skipped {tmp_path / 'text.png'}: the image does not decode" in done.stderr
    assert [image["id"] for image in json.loads((out / "detections.json").read_text())["images"]] == [2]


def test_two_images_of_one_name_do_not_overwrite_each_other_nor_a_source(
    folder: Path, data: CocoData, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(data.path(0).read_bytes())
    done = rnc("predict", folder, tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out")
    assert done.exit_code == 0
    assert {"1.jpg", "1-2.jpg"} < {file.name for file in (tmp_path / "out").iterdir()}
    before = (tmp_path / "a" / "1.jpg").read_bytes()
    refused(
        rnc("predict", folder, tmp_path / "a", "--out", tmp_path / "a"), "would be overwritten; name another folder"
    )
    assert (tmp_path / "a" / "1.jpg").read_bytes() == before


def test_a_photograph_is_seen_upright(folder: Path, data: CocoData, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    with Image.open(data.path(0)) as image:
        size = image.size
        image.save(tmp_path / "turned.png", exif=exif)
    rnc("predict", folder, tmp_path / "turned.png", "--out", tmp_path / "out")
    (image,) = json.loads((tmp_path / "out" / "detections.json").read_text())["images"]
    assert (image["height"], image["width"]) == size


@pytest.mark.parametrize("orientation", range(1, 9))
def test_python_and_the_command_see_the_same_picture(
    folder: Path, data: CocoData, tmp_path: Path, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(data.path(0)) as image:
        image.save(tmp_path / "photo.png", exif=exif)
    rnc("predict", folder, tmp_path / "photo.png", "--out", tmp_path / "out", "--score", 0)
    written = json.loads((tmp_path / "out" / "detections.json").read_text())
    (found,) = model.load(folder, device="cpu")(tmp_path / "photo.png")
    assert (written["images"][0]["height"], written["images"][0]["width"]) == found.size
    assert [row["score"] for row in written["annotations"]] == found.scores.tolist()
    boxes = found.boxes.astype(float)
    assert [row["bbox"] for row in written["annotations"]] == np.column_stack(
        [boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]
    ).tolist()
    assert len(boxes) > 3


def test_there_has_to_be_something_to_predict_on(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    out = ("--out", tmp_path / "out")
    refused(rnc("predict", folder, tmp_path / "empty", *out), "no image and no video in this folder, expected .jpg")
    refused(rnc("predict", folder, tmp_path / "x*.jpg", *out), "no such image, video, folder or pattern")
    refused(rnc("predict", folder, "", *out), "an empty name stands for no image, video or folder")
    refused(rnc("predict", folder, tmp_path, "--score", "nan", *out), "--score nan: expected 0 to 1")
    assert not (tmp_path / "out").exists()
    (tmp_path / "empty" / "1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    done = rnc("predict", folder, tmp_path / "empty", *out)
    assert done.exit_code == 1 and "1.HEIC: a HEIC picture, which is not read here; save it as JPEG" in done.stderr


def content_of(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "detections.json").read_text())
    return content


def boxes_on(content: dict[str, Any], image_id: int) -> list[tuple[int, float]]:
    return [(one["category_id"], one["score"]) for one in content["annotations"] if one["image_id"] == image_id]


def photos_of(data: CocoData, folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    for index in range(count):
        (folder / f"{index}.jpg").write_bytes(data.path(index).read_bytes())
    return sorted(folder.iterdir())


def animation(data: CocoData, file: Path) -> list[Image.Image]:
    scenes = [Image.open(data.path(index)).convert("RGB").resize((96, 64)) for index in range(3)]
    scenes[0].save(file, save_all=True, append_images=scenes[1:], duration=200, lossless=True)
    return scenes


def test_images_share_the_threads_and_the_last_line_says_how_fast(folder: Path, data: CocoData, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    photos_of(data, tmp_path / "photos", 3)
    by_threads = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        done = rnc("predict", folder, tmp_path / "photos", "--out", tmp_path / str(threads), "--score", 0.1)
        assert torch.get_num_threads() == threads
        assert re.search(r"^\d+ detections on 3 images, \d+\.\d images/s: ", done.stderr, re.MULTILINE)
        by_threads.append(content_of(tmp_path / str(threads)))
    torch.set_num_threads(before)
    assert by_threads[0]["annotations"] == by_threads[1]["annotations"] != []


def test_without_a_folder_the_results_go_under_the_home_each_job_to_its_own(
    folder: Path, data: CocoData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RNC_HOME", str(tmp_path / "home"))
    (tmp_path / "other").mkdir()
    (tmp_path / "home" / "predictions" / "fish-pulled").mkdir(parents=True)  # by a job that was killed at once
    one, other = (photos_of(data, tmp_path / where / "fish", 1)[0].parent for where in ("", "other"))
    for named in (one, one / "0.jpg", one, other):
        assert rnc("predict", folder, named).exit_code == 0
    made = sorted(path.name for path in (tmp_path / "home" / "predictions").iterdir())
    assert made == ["0-pulled", "fish-pulled", "fish-pulled-2"]


@pytest.mark.parametrize("by_signal", [False, True])
def test_an_interrupted_job_keeps_what_is_drawn_and_goes_on_from_there(
    folder: Path, data: CocoData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_signal: bool
) -> None:
    photos = photos_of(data, tmp_path / "photos", 5)
    rnc("predict", folder, tmp_path / "photos", "--out", tmp_path / "whole")
    seen: list[int] = []
    upright = decoding.upright

    def counted(source: Path) -> Image.Image:
        seen.append(photos.index(source))
        return upright(source)

    def tired(source: Path) -> Image.Image:
        if photos.index(source) == 3:
            if by_signal:  # which would end the tests, too, where nobody asks for it
                assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.5)
            raise KeyboardInterrupt
        return upright(source)

    out = tmp_path / "out"
    monkeypatch.setattr(decoding, "upright", tired)
    done = rnc("predict", folder, tmp_path / "photos", "--out", out)
    assert done.exit_code == 130
    kept = content_of(out)["images"]
    assert f"{len(kept)} of 5 files are done: {out / 'detections.json'}" in done.stderr
    assert {f"{Path(image['file_name']).stem}.jpg" for image in kept} == {path.name for path in out.glob("[!.]*.jpg")}
    assert len(kept) in (3, 4)  # the fifth may have been begun beside the fourth
    monkeypatch.setattr(decoding, "upright", counted)
    done = rnc("predict", folder, tmp_path / "photos", "--out", out)
    assert f"{len(kept)} of 5 files were done before, and are kept" in done.stderr
    assert len(seen) == 5 - len(kept) and 3 in seen
    for name in ("images", "annotations", "categories"):
        assert content_of(out)[name] == content_of(tmp_path / "whole")[name]


def test_a_job_writes_what_it_has_before_its_end_and_at_its_begin_whose_it_is(
    folder: Path, data: CocoData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = photos_of(data, tmp_path / "photos", 5)
    monkeypatch.setattr(run, "WRITE_SECONDS", 0.0)
    # After each image, by a clock on which to write takes no time: what takes long is done less often.
    monkeypatch.setattr(run, "time", SimpleNamespace(monotonic=lambda: 0.0, perf_counter=time.perf_counter))
    out, upright, kept = tmp_path / "out", decoding.upright, []

    def looked(source: Path) -> Image.Image:
        kept.append(content_of(out))  # as a kill would leave it
        return upright(source)

    monkeypatch.setattr(decoding, "upright", looked)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    assert rnc("predict", folder, tmp_path / "photos", "--out", out).exit_code == 0
    torch.set_num_threads(before)
    assert kept[0]["info"]["arguments"] == [str(folder), str(tmp_path / "photos")] and kept[0]["images"] == []
    (out / "detections.json").write_text(json.dumps(kept[-1]))
    assert 1 <= len(kept[-1]["info"]["files"]) < len(photos)
    done = rnc("predict", folder, tmp_path / "photos", "--out", out)
    assert f"{len(kept[-1]['info']['files'])} of 5 files were done before" in done.stderr


def test_results_of_others_are_not_overwritten_and_those_of_other_files_not_without_a_word(
    folder: Path, data: CocoData, tmp_path: Path
) -> None:
    photos, out = photos_of(data, tmp_path / "photos", 3), tmp_path / "out"
    out.mkdir()
    (out / "detections.json").write_text('{"images": [], "annotations": []}')
    refused(rnc("predict", folder, *photos, "--out", out), "its detections.json was not written by `rnc predict`")
    assert (out / "detections.json").read_text() == '{"images": [], "annotations": []}'
    (out / "detections.json").unlink()
    assert "replaced" not in rnc("predict", folder, *photos, "--out", out).stderr
    told = f"the results of 2 other files in {out / 'detections.json'} are replaced; --out names another folder"
    assert told in rnc("predict", folder, photos[0], "--out", out).stderr


def test_names_may_be_as_long_as_a_file_system_takes(folder: Path, data: CocoData, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    long = tmp_path / "photos" / f"{'ä' * 125}.jpeg"
    long.write_bytes(data.path(0).read_bytes())
    animation(data, long.with_name(f"{'b' * 251}.gif"))
    done = rnc("predict", folder, tmp_path / "photos", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert len(content_of(tmp_path / "out")["images"]) == 4
    assert not list((tmp_path / "out").glob(".*"))


def test_a_photograph_that_is_removed_meanwhile_keeps_its_boxes(
    folder: Path, data: CocoData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = photos_of(data, tmp_path / "photos", 3)
    upright = decoding.upright

    def removed(source: Path) -> Image.Image:
        picture = upright(source)
        if source == photos[1]:  # the other is read at the same time
            source.unlink(missing_ok=True)
        return picture

    monkeypatch.setattr(decoding, "upright", removed)
    (tmp_path / "last.jpg").write_bytes(photos[0].read_bytes())
    done = rnc("predict", folder, photos[1], tmp_path / "last.jpg", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    content = content_of(tmp_path / "out")
    assert len(content["images"]) == 2 and list(content["info"]["files"]) == [str(tmp_path / "last.jpg")]


def test_a_film_that_no_encoder_takes_is_named_and_the_others_are_done(
    folder: Path, data: CocoData, tmp_path: Path
) -> None:
    pytest.importorskip("av")
    frames = [Image.new("L", (20_000, 16), 40 * number) for number in range(3)]  # H.264 ends at 16,384
    frames[0].save(tmp_path / "wide.gif", save_all=True, append_images=frames[1:])
    animation(data, tmp_path / "clip.gif")
    out = tmp_path / "out"
    done = rnc("predict", folder, tmp_path / "wide.gif", tmp_path / "clip.gif", data.path(0), "--out", out)
    assert done.exit_code == 1, done.output
    assert done.stderr.count(f"skipped {tmp_path / 'wide.gif'}: the video is not encoded (") == 1
    assert [len(boxes) for boxes in (content_of(out)["images"], content_of(out)["videos"])] == [4, 1]
    assert sorted(path.name for path in out.iterdir()) == sorted(["clip.mp4", "detections.json", data.path(0).name])


def test_where_no_score_is_high_enough_the_best_is_said(folder: Path, data: CocoData, tmp_path: Path) -> None:
    (found,) = model.load(folder)(data.path(0))
    best = float(found.scores[0])
    assert 0.1 < best < 0.999
    done = rnc("predict", folder, data.path(0), "--out", tmp_path / "out", "--score", 0.999)
    least = int(best * 10) / 10
    assert f"no score reaches 0.999; the best is {best:.2f}: --score {least:g} shows more" in done.stderr
    assert "no score" not in rnc("predict", folder, data.path(0), "--out", tmp_path / "out", "--score", least).stderr


def test_what_changed_is_done_again(folder: Path, data: CocoData, tmp_path: Path) -> None:
    photos = photos_of(data, tmp_path / "photos", 2)
    out = ("--out", tmp_path / "out")
    kept = "files were done before"
    rnc("predict", folder, tmp_path / "photos", *out)
    assert f"2 of 2 {kept}" in rnc("predict", folder, tmp_path / "photos", *out).stderr
    assert kept not in rnc("predict", folder, tmp_path / "photos", *out, "--set", "nms_iou=0.5").stderr
    assert kept not in rnc("predict", folder, tmp_path / "photos", *out, "--score", 0.6).stderr
    (tmp_path / "out" / "0.jpg").unlink()
    assert f"1 of 2 {kept}" in rnc("predict", folder, tmp_path / "photos", *out, "--score", 0.6).stderr
    photos[1].write_bytes(data.path(2).read_bytes())
    assert f"1 of 2 {kept}" in rnc("predict", folder, tmp_path / "photos", *out, "--score", 0.6).stderr
    (tmp_path / "out" / "detections.json").write_text('{"info": {"made_by": "rnc predict"}}')
    assert kept not in rnc("predict", folder, tmp_path / "photos", *out, "--score", 0.6).stderr
    edited = content_of(tmp_path / "out")
    del edited["annotations"]
    (tmp_path / "out" / "detections.json").write_text(json.dumps(edited))
    done = rnc("predict", folder, tmp_path / "photos", *out, "--score", 0.6)
    assert kept not in done.stderr and done.exit_code == 0


def test_frames_of_an_animation_are_images_with_their_times(folder: Path, data: CocoData, tmp_path: Path) -> None:
    scenes = animation(data, tmp_path / "clip.webp")
    still = data.path(3)
    out = tmp_path / "out"
    done = rnc("predict", folder, tmp_path / "clip.webp", still, "--out", out, "--score", 0.1, "--every", 2)
    assert done.exit_code == 0, done.output
    content = content_of(out)
    keys = ("id", "file_name", "video_id", "frame", "seconds")
    assert [tuple(image.get(key) for key in keys) for image in content["images"]] == [
        (3, str(tmp_path / "clip.webp"), 1, 0, 0.0),
        (4, str(tmp_path / "clip.webp"), 1, 2, 0.4),
        (2, str(still), None, None, None),
    ]
    assert content["videos"] == [{"id": 1, "file_name": str(tmp_path / "clip.webp"), "complete": True}]
    for image_id, found in zip((3, 4, 2), model.load(folder)([scenes[0], scenes[2], still]), strict=True):
        kept = found.above(0.1)
        assert boxes_on(content, image_id) == list(zip(kept.category_ids, kept.scores.tolist(), strict=True))
    assert (
        "2 of 2 files were done"
        in rnc("predict", folder, tmp_path / "clip.webp", still, "--out", out, "--score", 0.1, "--every", 2).stderr
    )
    assert content_of(out) == content


def test_a_video_is_drawn_as_a_video_of_the_same_length(folder: Path, data: CocoData, tmp_path: Path) -> None:
    pytest.importorskip("av")
    scenes = animation(data, tmp_path / "unused.webp")
    writer = VideoWriter(tmp_path / "clip.mp4", 5)
    for number in range(6):
        writer.add(scenes[number % 3], Frame(number=number, seconds=number / 5, picture=scenes[0]))
    writer.close()
    out = tmp_path / "out"
    assert rnc("predict", folder, tmp_path / "clip.mp4", "--out", out, "--every", 2).exit_code == 0
    assert [(one["frame"], one["seconds"]) for one in content_of(out)["images"]] == [(0, 0.0), (2, 0.4), (4, 0.8)]
    film = open_film(out / "clip.mp4")
    assert film is not None
    frames = list(film.frames())
    assert [frame.seconds for frame in frames] == pytest.approx([0, 0.4, 0.8])
    assert frames[0].picture.size == (576, 384)  # 6 is the first whole factor that brings 96 to 512


@pytest.mark.parametrize("kind", [video.PicturesWriter, VideoWriter])
def test_a_film_that_is_interrupted_is_whole_up_to_there_and_begun_anew(
    folder: Path, data: CocoData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Any]
) -> None:
    if kind is VideoWriter:
        pytest.importorskip("av")
    else:
        monkeypatch.setattr(video, "find_spec", lambda name: None)  # frames are pictures then
    animation(data, tmp_path / "clip.webp")
    add = kind.add

    def tired(writer: Any, picture: Image.Image, frame: Frame) -> None:
        if frame.number == 2:
            raise KeyboardInterrupt
        add(writer, picture, frame)

    out = tmp_path / "out"
    monkeypatch.setattr(kind, "add", tired)
    assert rnc("predict", folder, tmp_path / "clip.webp", "--out", out).exit_code == 130
    assert [one["frame"] for one in content_of(out)["images"]] == [0, 1]
    assert [one["complete"] for one in content_of(out)["videos"]] == [False]
    if kind is VideoWriter:
        film = open_film(out / "clip.mp4")
        assert film is not None and film.num_frames == 2
        assert sorted(path.name for path in out.iterdir()) == ["clip.mp4", "detections.json"]
    else:
        assert sorted(path.name for path in (out / "clip").iterdir()) == ["000000.jpg", "000001.jpg"]
    monkeypatch.setattr(kind, "add", add)
    assert "were done" not in rnc("predict", folder, tmp_path / "clip.webp", "--out", out).stderr
    assert [one["frame"] for one in content_of(out)["images"]] == [0, 1, 2]
    assert [one["complete"] for one in content_of(out)["videos"]] == [True]


def test_a_film_that_breaks_off_keeps_its_frames_and_says_so(folder: Path, data: CocoData, tmp_path: Path) -> None:
    pytest.importorskip("av")
    animation(data, tmp_path / "clip.gif")
    whole = (tmp_path / "clip.gif").read_bytes()
    (tmp_path / "clip.mp4").write_text("no video")
    (tmp_path / "clip.gif").write_bytes(whole[: len(whole) * 3 // 5])
    done = rnc("predict", folder, tmp_path / "clip.mp4", tmp_path / "clip.gif", "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert f"skipped {tmp_path / 'clip.mp4'}: the video does not open (Invalid data" in done.stderr
    frames = len(content_of(tmp_path / "out")["images"])
    assert frames in (1, 2) and content_of(tmp_path / "out")["videos"][0]["complete"] is False
    rest = f"skipped the rest of {tmp_path / 'clip.gif'} after {frames} frames: the animation does not decode ("
    assert rest in done.stderr


def test_mistakes_are_told_in_a_line_before_torch_is_imported(tmp_path: Path, data: CocoData, folder: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "1.jpg").write_bytes(data.path(0).read_bytes())
    refused(rnc("predict", folder, tmp_path / "deep"), f"{tmp_path / 'deep' / 'er'} holds some: name it, or '")
    (tmp_path / "file").write_text("")
    refused(
        rnc("predict", folder, data.path(0), "--out", tmp_path / "file" / "x"),
        f"error: --out: cannot write to {tmp_path / 'file' / 'x'} (Not a directory); name another folder\n",
    )
    code = (
        "import sys; from orchestrator.cli.main import cli\n"
        f"try: cli(['predict', {str(folder)!r}, 'nowhere.jpg'])\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout.split() == ["2", "False"]
    assert ran.stderr == "error: nowhere.jpg: no such image, video, folder or pattern\n"


def test_a_video_without_pyav_is_refused_with_what_to_install(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    (tmp_path / "clip.mov").write_text("")
    refused(rnc("predict", folder, tmp_path / "clip.mov"), "is not installed: pip install 'retinanet-conf[video]'")
