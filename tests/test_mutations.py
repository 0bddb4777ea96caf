"""Files that others made, mutated at random: each reader takes them or refuses them in its own words, and never breaks.

`RNC_MUTATIONS=10000 pytest tests/test_mutations.py` tries as many; a failure prints the seed that makes it again.
"""

import json
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from model.config import InferenceConfig
from model.data.coco import read_coco
from model.data.faults import DataError
from model.data.files.decoding import decode, upright
from model.evaluation.coco.matches import read_matches, write_matches
from model.evaluation.misalignment import COUNTS, FILES, read_misalignment, write_misalignment
from model.evaluation.parts import Part, read_about, read_part, write_parts
from model.inference.table import ABOUT
from model.inference.video import open_film
from model.names import CARD, INFERENCE
from model.network.checkpoint import read_card, read_inference, require_categories
from model.network.weight_files import read_weights, require_finite, resnet_of, to_imagenet_input
from orchestrator.checkpoint.prediction.files import read_results as read_predictions
from orchestrator.checkpoint.pull import PROVENANCE, read_provenance
from orchestrator.errors import UserError
from orchestrator.experiment.load import load_experiment
from orchestrator.report.claims.file import load_claims
from orchestrator.tracking.evaluations.detections import (
    About,
    holds_json,
    read_results,
    read_stored,
    require_same_images,
    write_stored,
)
from tests.data_folders import coco_json, picture, text
from tests.detections import matches_of, random_scene, table, write
from tests.detectors import save_opinionated
from tests.misalignments import misalignment
from tests.mutations import BYTES, JSON, PARQUET, cells, flipped, retyped, with_json, words

NUM = int(os.environ.get("RNC_MUTATIONS", "1500"))
"""Of all kinds of files together."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of file that others make."""

    name: str
    file: Path
    """A sound one, in a folder with all that belongs to it."""
    read: Callable[[Path], object]
    """All that is done with it."""
    mutate: tuple[Callable[[bytes, Random], bytes], ...]
    refusals: tuple[type[Exception], ...] = (ValueError,)


def kinds(root: Path) -> Iterator[Kind]:
    """Each kind of file, with a sound one."""
    checkpoint = save_opinionated(root / "pulled", ((2, 5, 9, 11), tuple("abcd")))
    (checkpoint / INFERENCE).write_text(json.dumps({"confidence_exponent": 0.3, "nms_iou": 0.6}))
    said = {
        "row": "r",
        "tables": {"t": "r"},
        "suite": "s",
        "seed": 0,
        "split": "val",
        "metrics": {"AP": 1.0},
        "dataset": "d",
        "inference": {},
        "train_fingerprint": "",
        "split_fingerprint": "",
        "train_key": "k",
        "evaluation_key": "e",
        "git_commit": "",
        "link": "",
        "training_link": "",
        "weights_sha256": "0",
        "weights_bytes": 1,
        "versions": {},
    }
    (checkpoint / PROVENANCE).write_text(json.dumps(said))

    def card(file: Path) -> None:
        read_card(file.parent)
        require_categories(file.parent, ((2, 5, 9, 11), tuple("abcd")), "x")

    yield Kind(name="card", file=checkpoint / CARD, mutate=JSON, read=card)
    yield Kind(
        name="inference", file=checkpoint / INFERENCE, mutate=JSON, read=lambda file: read_inference(file.parent)
    )
    yield Kind(
        name="provenance", file=checkpoint / PROVENANCE, mutate=JSON, read=lambda file: read_provenance(file.parent)
    )
    predicted = text(
        root / "predicted" / "detections.json", json.dumps({"info": {"made_by": "rnc predict"}, "images": []})
    )
    yield Kind(name="predictions", file=predicted, mutate=JSON, read=lambda file: read_predictions(file.parent))

    annotations, found = random_scene(0)
    (root / "scene").mkdir()
    data, file = write(root / "scene", annotations, 8)

    def coco(file: Path) -> None:
        read_coco(file.parents[1], "val", check_images=False, faults="quarantine")

    yield Kind(name="coco", file=file, mutate=JSON, read=coco)
    lvis = json.loads(file.read_text())
    for image in lvis["images"]:
        image |= {"coco_url": f"http://x/val/{image.pop('file_name')}", "neg_category_ids": [2]}
    (root / "lvis" / "val").mkdir(parents=True)
    of_lvis = text(root / "lvis" / "annotations" / "lvis_v1_val.json", json.dumps(lvis))
    yield Kind(name="lvis", file=of_lvis, mutate=JSON, read=lambda file: read_coco(file, "val", check_images=False))

    rows = [{"image_id": i, "category_id": c, "bbox": list(box), "score": s} for i, c, box, s in found]

    def results(file: Path) -> None:
        if holds_json(file):
            read_results(file, data)

    of_results = text(root / "results" / "results.json", json.dumps(rows))
    yield Kind(name="results", file=of_results, mutate=JSON, read=results, refusals=(UserError,))

    about = About(
        data=replace(read_card(checkpoint).config.data, dataset="scene"),
        split="val",
        data_fingerprint=data.fingerprint,
        num_images=8,
        inference=InferenceConfig(),
        train_key="k",
        evaluation_key="e",
        weights_sha256="0",
        metrics={"AP": 1.0},
    )
    stored = root / "stored" / "found.parquet"
    write_stored(stored, table(found), about)

    def detections(file: Path) -> None:
        kept, said = read_stored(file)
        require_same_images(file, said, kept, data)

    yield Kind(name="detections", file=stored, mutate=PARQUET, read=detections, refusals=(UserError,))
    (root / "matches").mkdir()
    write_matches(matches_of([[0.5, 0.25], [], [0.125]], [[1, 0], [], [3]], [1, 0, 2]), root / "matches" / "m.parquet")
    yield Kind(name="matches", file=root / "matches" / "m.parquet", mutate=PARQUET, read=read_matches)
    (root / "counts").mkdir()
    write_misalignment(root / "counts", misalignment(), {"a": 1})
    for name in FILES:
        yield Kind(
            name=name, file=root / "counts" / name, mutate=PARQUET, read=lambda file: read_misalignment(file.parent)
        )
    (root / "parts").mkdir()
    write_parts(root / "parts" / "p.parquet", [Part(table(found), misalignment())], {"a": 1})

    def part(file: Path) -> None:
        read_about(file, whole=True)
        read_part(file, 0)

    yield Kind(name="part", file=root / "parts" / "p.parquet", mutate=PARQUET, read=part)

    yolo = root / "yolo"
    for split in ("train", "val"):
        picture(yolo / "images" / split / "a.png")
        text(yolo / "labels" / split / "a.txt", "0 0.5 0.5 0.25 0.25\n1 0.1 0.1 0.3 0.1 0.3 0.3 0.1 0.3\n")
    names = {"path": ".", "train": "images/train", "val": "images/val", "nc": 2, "names": ["cat", "dog"]}
    text(yolo / "data.yaml", json.dumps(names))
    yield Kind(
        name="data.yaml", file=yolo / "data.yaml", mutate=JSON, read=lambda file: read_coco(file.parent, "train")
    )
    label = yolo / "labels" / "train" / "a.txt"
    yield Kind(name="labels", file=label, mutate=(*BYTES, words), read=lambda file: read_coco(file.parents[2], "train"))
    image = yolo / "images" / "train" / "a.png"
    picture(image.with_suffix(".jpg")).unlink()

    voc = root / "voc"
    picture(voc / "train" / "a.png")
    xml = (
        "<annotation><filename>a.png</filename><size><width>80</width><height>60</height><depth>3</depth></size><object>"
        "<name>cat</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax>"
        "</bndbox></object></annotation>"
    )
    text(voc / "train" / "a.xml", xml)
    yield Kind(
        name="voc", file=voc / "train" / "a.xml", mutate=(*BYTES, words), read=lambda file: read_coco(voc, "train")
    )
    of_open = root / "open"
    for name in ("a", "b"):
        picture(of_open / "train" / f"{name}.png")
    boxes = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsGroupOf\n"
    boxes += "a,x,/m/1,1,0.1,0.5,0.2,0.6,0\nb,x,/m/2,1,0,1,0,1,1\n"
    text(of_open / "train-annotations-bbox.csv", boxes)
    yield Kind(
        name="open_images",
        file=of_open / "train-annotations-bbox.csv",
        mutate=(*BYTES, cells),
        read=lambda file: read_coco(of_open, "train"),
    )
    (root / "all").mkdir()
    picture(root / "all" / "images" / "a.png")
    coco_json(root / "all" / "labels.json", ["a.png"])
    yield Kind(
        name="one coco", file=root / "all" / "labels.json", mutate=JSON, read=lambda file: read_coco(file.parent, "all")
    )

    (root / "images").mkdir()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8))
    for suffix in ("png", "jpg", "gif", "tiff", "webp"):
        noise.save(root / "images" / f"a.{suffix}")

        def seen(file: Path) -> None:
            for see in (upright, decode, open_film, lambda file: decode(file, (40, 30))):
                try:
                    see(file)
                except ValueError as error:
                    refusal = error
                    if not str(refusal).strip():
                        raise AssertionError("no words") from error

        yield Kind(name=suffix, file=root / "images" / f"a.{suffix}", mutate=BYTES, read=seen)

    weights = {
        "conv1.weight": torch.randn(4, 3, 7, 7),
        "layer1.0.conv1.weight": torch.randn(4),
        "bn1.running_var": torch.ones(4),
    }
    (root / "weights").mkdir()
    save_file(weights, root / "weights" / "a.safetensors", metadata={"format": "pt"})
    torch.save({"state_dict": weights, "epoch": 3}, root / "weights" / "a.pth")

    def first(file: Path) -> None:
        body = resnet_of(file, read_weights(file))
        require_finite(file, body.weights)
        to_imagenet_input(file, body.weights, "imagenet")

    headers = tuple(with_json(change) for change in (retyped, retyped, flipped))
    yield Kind(name="safetensors", file=root / "weights" / "a.safetensors", mutate=(*BYTES, *headers), read=first)
    yield Kind(name="pth", file=root / "weights" / "a.pth", mutate=BYTES, read=first)

    experiment = {
        "title": "t",
        "question": "q",
        "defaults": {"train": {"data": {"dataset": "coco"}}},
        "seeds": [0, 1],
        "reference": "a",
        "rows": [
            {"label": "a", "train": {"model": {"backbone": "resnet18"}}},
            {"label": "b", "inference": {"nms_iou": 0.4}},
        ],
        "columns": ["AP", "AP50"],
        "resources": {"num_workers": 1},
        "cited": [{"label": "p", "paper": {"AP": 35.3}, "source": "x"}],
    }
    grid = {
        "title": "t",
        "grid": {"train.schedule.learning_rate": [0.01, 0.02], "inference.nms_iou": [0.4, 0.5]},
        "seeds": {"until": "decided", "at_least": 2, "most": 8},
        "reference": "learning_rate 0.01, nms_iou 0.4",
    }
    for name, content in {"experiment": experiment, "grid": grid}.items():
        file = text(root / name / "table.yaml", json.dumps(content))
        yield Kind(name=name, file=file, mutate=JSON, read=load_experiment, refusals=(UserError,))
    claims = {
        "claims": [
            {"sentence": "a beats b", "kind": "above", "table": "table", "rows": ["a"], "over": ["b"], "metric": "AP"}
        ],
        "tables": [],
    }
    text(root / "claims" / "table.yaml", json.dumps(experiment))
    file = text(root / "claims" / "claims.yaml", json.dumps(claims))
    yield Kind(name="claims", file=file, mutate=JSON, read=load_claims, refusals=(UserError,))


def broken(root: Path, number: int, start: int = 0) -> Iterator[str]:
    """Each mutation that a reader takes neither as a file nor as a refusal in its own words, with its seed."""
    every = list(kinds(root))
    sound = {kind.name: kind.file.read_bytes() for kind in every}
    for seed in range(start, start + number):
        kind = every[seed % len(every)]
        random = Random(seed)
        change = random.choice(kind.mutate)
        try:
            content = change(sound[kind.name], random)
        except RecursionError:
            continue
        kind.file.write_bytes(content)
        try:
            kind.read(kind.file)
        except kind.refusals as error:
            if not str(error).strip() or str(root) not in str(error):
                said = f"{type(error).__name__} names no file: {str(error)[:200]}"
                yield f"seed {seed}, {kind.name}, {change.__name__}: {said}"
        except Exception as error:
            where = error.__traceback__
            while where is not None and where.tb_next is not None:
                where = where.tb_next
            at = f"{where.tb_frame.f_code.co_filename}:{where.tb_lineno}" if where else ""
            yield f"seed {seed}, {kind.name}, {change.__name__}: {type(error).__name__}: {str(error)[:200]} at {at}"
        finally:
            kind.file.write_bytes(sound[kind.name])


def test_no_mutation_breaks_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNC_CACHE", str(tmp_path / "cache"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert list(broken(tmp_path / "files", NUM)) == []


def test_every_sound_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNC_CACHE", str(tmp_path / "cache"))
    unread = []
    for kind in kinds(tmp_path):
        try:
            kind.read(kind.file)
        except (DataError, UserError, ValueError) as error:
            unread.append(f"{kind.name}: {error}")
    assert unread == []
    assert ABOUT in pq.read_schema(tmp_path / "stored" / "found.parquet").metadata
    assert COUNTS in FILES
