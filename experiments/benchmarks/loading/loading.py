"""What keeps a training fed: annotations, images, shapes of batches, and the pipeline, each on its own.

Real images come from RNC_COCO_ROOT (split val2017), where that is set, else scenes are drawn. Absolute times are
those of this machine at this moment; ratios are of work that was done in turn.
"""

import os
import tempfile
from pathlib import Path

import annotations
import click
import images
import pipelines
import shapes

from model.data.coco import read_coco
from model.data.shapes import draw_shapes
from model.data.split import CocoData

PARTS = ("annotations", "images", "shapes", "pipelines")


@click.command(help=__doc__)
@click.option("--part", "parts", type=click.Choice(PARTS), multiple=True, default=PARTS, show_default=True)
@click.option("--rounds", default=3, show_default=True, help="Measurements of each kind.")
@click.option("--copies", default=6, show_default=True, help="How often the images make an epoch of the pipelines.")
@click.option("--size", default=annotations.TRAIN2017, show_default=True, help="Images of the large split.")
@click.option("--edges", nargs=2, default=(600, 1000), show_default=True, help="Short and long edge of an image.")
@click.option(
    "--statistics",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A COCO file whose sizes and boxes make the large split; else that of the images.",
)
def main(
    parts: tuple[str, ...], rounds: int, copies: int, size: int, edges: tuple[int, int], statistics: Path | None
) -> None:
    """Measure, and print."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        os.environ["RNC_CACHE"] = folder
        data = _images(scratch / "drawn")
        source = statistics or data.root / "annotations" / f"instances_{data.split}.json"
        if "annotations" in parts:
            annotations.report(source, size, scratch, click.echo)
        if "images" in parts:
            images.report(data, rounds, edges, click.echo)
        if "shapes" in parts:
            shapes.report(source, size, click.echo)
        if "pipelines" in parts:
            pipelines.report(data, copies, rounds, edges, scratch / "repeated", click.echo)


def _images(drawn: Path) -> CocoData:
    if "RNC_COCO_ROOT" in os.environ:
        return read_coco(Path(os.environ["RNC_COCO_ROOT"]), "val2017", check_images=False)
    draw_shapes(drawn, num_train=1, num_val=100, image_size=640)
    return read_coco(drawn, "val", check_images=False)


if __name__ == "__main__":
    main()
