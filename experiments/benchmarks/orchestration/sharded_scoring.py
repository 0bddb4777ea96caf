"""The same shards scored by one process, by Ray Train workers that share them out, and by a pool of Ray Data.

A detector of the miniature suites' size, which learnt nothing, scores drawn scenes under ten exponents; the workers
have one CPU and one thread each. Ray runs already. Each way is timed from its call until all shards are on disk, and
its speed from the first shard on, for what comes before is the start of workers, which a submit has from the training
already. They take turns in one run; a ratio below 1 is faster than one process.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from model.config import DataConfig, InferenceConfig, ModelConfig, TrainConfig
from model.data.coco import read_coco
from model.data.shapes import draw_shapes
from model.evaluation.parts import write_parts
from model.evaluation.scoring import score_shards, shards
from model.evaluation.shards import Pass, Team, score_missing
from model.network.checkpoint import save_checkpoint
from model.network.retinanet import build_detector, load_detector
from orchestrator.cluster.environment import set_ray_environment
from orchestrator.site import Site

MODEL = ModelConfig(
    backbone="resnet18_quarter",
    backbone_norm="group",
    channels=64,
    tower_depth=2,
    tower_norm="group",
    frozen_stages=0,
)
SIZES = DataConfig(short_edge=128, long_edge=128)
SETTINGS = tuple(InferenceConfig(confidence_exponent=place / 10) for place in range(10))
WORKERS = 2


@click.command(help=__doc__)
@click.option("--images", default=1000, show_default=True, help="Scenes to score.")
@click.option("--rounds", default=3, show_default=True, help="Scorings of each kind.")
def main(images: int, rounds: int) -> None:
    """Measure, and print ratios."""
    set_ray_environment(is_local=True)  # before anything imports Ray
    from orchestrator.cluster.connect import start_ray, stop_ray

    with tempfile.TemporaryDirectory() as scratch:
        site = Site(home=Path(scratch))
        root, checkpoint = site.data_root("shapes"), _prepare(site, images)
        click.echo(f"{images} images, {len(SETTINGS)} settings; load of the machine {os.getloadavg()[0]:.1f}")
        start_ray(site)
        ways: dict[str, Callable[[Path], None]] = {
            "one process": lambda keep: _score_share(root, checkpoint, keep, Team()),
            "Ray Train": lambda keep: _train(root, checkpoint, keep),
            "Ray Data": lambda keep: _data(root, checkpoint, keep),
        }
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for number in range(rounds):
            for name, way in ways.items():
                keep, begin = Path(scratch) / f"{name}-{number}", time.time()
                way(keep)
                ends = sorted(file.stat().st_mtime for file in keep.rglob("*.parquet"))
                taken[name].append((ends[-1] - begin, (ends[-1] - ends[0]) / (len(ends) - 1)))
                click.echo(
                    f"  round {number + 1}, {name}: {ends[-1] - begin:.1f} s, the first of {len(ends)} shards after "
                    f"{ends[0] - begin:.1f} s"
                )
        stop_ray()
    for name, values in taken.items():
        pairs = list(zip(values, taken["one process"], strict=True))
        whole, each = ([mine[k] / alone[k] for mine, alone in pairs] for k in (0, 1))
        click.echo(
            f"{name:12} {statistics.median(whole):.2f} of one process's time ({min(whole):.2f} to {max(whole):.2f}), "
            f"from the first shard on {statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f}) a shard"
        )


def _prepare(site: Site, images: int) -> Path:
    root = site.data_root("shapes")
    draw_shapes(root, num_train=1, num_val=images, image_size=128)
    data = read_coco(root, "val")
    return save_checkpoint(
        site.home / "checkpoint",
        weights=build_detector(MODEL, len(data.category_ids), seed=3).state_dict(),
        config=TrainConfig(model=MODEL, data=SIZES),
        epoch=1,
        step=1,
        categories=(data.category_ids, data.category_names),
        data_fingerprint=data.fingerprint,
        optimizer={},
    )


def _score_share(root: Path, checkpoint: Path, keep: Path, team: Team) -> None:
    torch.set_num_threads(1)
    work = Pass(
        detector=load_detector(checkpoint),
        weights_sha256="",
        data=read_coco(root, "val", check_images=False),
        config=SIZES,
        settings=SETTINGS,
        keep=keep,
    )
    score_missing(work, team)


def _train(root: Path, checkpoint: Path, keep: Path) -> None:
    import ray

    @ray.remote(num_cpus=0)
    class Trial:
        """Stands for the Tune trial that starts the workers in a submit."""

        def fit(self) -> None:
            import ray.train

            from orchestrator.worker.trainer import make_trainer

            make_trainer(
                _work,
                {"root": root, "checkpoint": checkpoint, "keep": keep},
                backend=None,
                scaling_config=ray.train.ScalingConfig(num_workers=WORKERS, resources_per_worker={"CPU": 1}),
                run_config=ray.train.RunConfig(name=keep.name, storage_path=str(keep.parent / "train")),
            ).fit()

    trial = Trial.remote()  # type: ignore[attr-defined]
    ray.get(trial.fit.remote())
    ray.kill(trial)


def _work(settings: dict[str, Any]) -> None:
    import ray.train
    from ray.train.collective import barrier, broadcast_from_rank_zero

    rank = ray.train.get_context().get_world_rank()
    team = Team(rank=rank, size=WORKERS, agree=broadcast_from_rank_zero, wait=barrier)
    _score_share(settings["root"], settings["checkpoint"], settings["keep"], team)


class _Scorer:
    """An actor that scores the shards it is handed."""

    def __init__(self, root: Path, checkpoint: Path, keep: Path) -> None:
        torch.set_num_threads(1)
        self.detector, self.keep = load_detector(checkpoint), keep
        self.data = read_coco(root, "val", check_images=False)
        self.shards = shards(self.data, SIZES)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        for place in batch["id"].tolist():
            for parts in score_shards(self.detector, self.data, [self.shards[place]], SETTINGS, SIZES):
                write_parts(self.keep / f"{place}.parquet", parts, {"settings": []})
        return batch


def _data(root: Path, checkpoint: Path, keep: Path) -> None:
    import ray.data

    keep.mkdir()
    count = len(shards(read_coco(root, "val", check_images=False), SIZES))
    ray.data.DataContext.get_current().enable_progress_bars = False
    items = [{"id": place} for place in range(count)]  # in memory: a reading task would want a CPU, and wait for ever
    ray.data.from_items(items, override_num_blocks=count).map_batches(
        _Scorer,
        fn_constructor_args=(root, checkpoint, keep),
        batch_size=1,
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=WORKERS),
    ).materialize()


if __name__ == "__main__":
    main()
