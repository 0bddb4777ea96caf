"""From raw predictions to detections, and from an image to detections: ours beside torchvision's RetinaNet.

Both post-process the same predictions of one image with 1,000 candidates on every level, by the same rules or by the
paper's, and take turns in one run; ratios are ours over torchvision's, of whole images over its best way to run.
"""

import click
import torch
from peer import NUM_CLASSES, SIZE, Way, in_turn, our_step, ratios, say_times, scene, spread, their_detector, variants
from torch import Tensor

from model.config import InferenceConfig
from model.data.images import normalize
from model.inference.postprocess import detect
from model.network.anchors import NUM_ANCHORS, AnchorGrid, anchor_grid
from model.network.retinanet import Predictions, flat

THEIR_RULES = InferenceConfig(confidence_exponent=0.0, top_k_of="pairs", max_detections=300)
RULES = {
    "torchvision's rules": THEIR_RULES,
    "by class score": InferenceConfig(confidence_exponent=0.0),
    "fused, exponent 0.4": InferenceConfig(),
}
CANDIDATES = 1000


@click.command(help=__doc__)
@click.option(
    "--rounds", default=20, show_default=True, help="Measurements of the post-processing; a quarter of whole."
)
def main(rounds: int) -> None:
    """Measure, and print."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.inference_mode():
        _postprocess(rounds, device)
        _whole(max(1, rounds // 4), device)


def _postprocess(rounds: int, device: torch.device) -> None:
    grid = anchor_grid(SIZE, device)
    lengths = grid.level_lengths
    predictions = _predictions(grid, device)
    detector = their_detector(device).eval()
    sizes, scales = torch.tensor([SIZE], device=device), torch.ones(1, 2, device=device)

    def ours(rules: InferenceConfig) -> tuple[Tensor, Tensor]:
        (found,) = detect(predictions, grid, sizes, scales, rules)
        return torch.from_numpy(found.scores), torch.from_numpy(found.category_ids)

    def theirs() -> tuple[Tensor, Tensor]:
        outputs = {
            "cls_logits": list(torch.split(flat(predictions.class_logits, NUM_CLASSES), lengths, dim=1)),
            "bbox_regression": list(torch.split(flat(predictions.box_deltas, 4), lengths, dim=1)),
        }
        anchors = [list(torch.split(grid.boxes, lengths))]
        (found,) = detector.postprocess_detections(outputs, anchors, [SIZE])
        return found["scores"], found["labels"]

    ways: dict[str, Way] = {name: lambda rules=rules: ours(rules) for name, rules in RULES.items()}  # type: ignore[misc]
    seconds = in_turn(ways | {"theirs": theirs}, rounds, device)
    (my_scores, my_labels), (scores, labels) = ours(THEIR_RULES), (found.cpu() for found in theirs())
    same = torch.equal(my_labels, labels) and torch.allclose(my_scores, scores, rtol=1e-6)
    click.echo(f"post-processing of one image, {CANDIDATES} candidates a level, {NUM_CLASSES} classes")
    for name, values in seconds.items():
        line = f"  {name:20} {spread([1e3 * value for value in values], 1)} ms"
        click.echo(line if name == "theirs" else f"{line}, ratio {ratios(values, seconds['theirs'])}")
    click.echo(f"  by the same rules, classes are the same and scores within 1e-6: {'yes' if same else 'NO'}")


def _predictions(grid: AnchorGrid, device: torch.device) -> Predictions:
    """On every level 1,000 anchors of which one class stands out, or all where there are fewer."""
    generator = torch.Generator(device).manual_seed(0)

    def level(size: int, mean: float, height: int, width: int) -> Tensor:
        rows = torch.randn(height * width * NUM_ANCHORS, size, generator=generator, device=device) + mean
        if size == NUM_CLASSES:
            chosen = torch.randperm(len(rows), generator=generator, device=device)[:CANDIDATES]
            labels = torch.randint(size, (len(chosen),), generator=generator, device=device)
            rows[chosen, labels] += 7.0
        return rows.view(1, height, width, -1).permute(0, 3, 1, 2)

    classes, deltas, confidences = (
        [level(size, mean, *cells) for cells in grid.level_sizes]
        for size, mean in ((NUM_CLASSES, -7.0), (4, 0.0), (1, 0.0))
    )
    return Predictions(classes, deltas, confidences)


def _whole(rounds: int, device: torch.device) -> None:
    given, grid = scene(1, device), anchor_grid(SIZE, device)
    mine = our_step(device).detector.eval()
    sizes, scales = torch.tensor([SIZE], device=device), torch.ones(1, 2, device=device)

    def ours() -> object:
        images = normalize(given.batch.images, given.batch.sizes).contiguous(memory_format=torch.channels_last)
        return detect(mine(images), grid, sizes, scales, InferenceConfig(confidence_exponent=0.0))

    ways: dict[str, Way] = {"ours": ours}
    for name, variant in variants(device).items():
        peer = their_detector(device, variant).eval()
        ways[name] = lambda peer=peer: peer(given.images)  # type: ignore[misc]
    click.echo("one image, from its pixels to its detections, float32")
    say_times(in_turn(ways, rounds, device), "s", digits=3)


if __name__ == "__main__":
    main()
