"""One row trained and scored in this process, without Ray and MLflow: `rnc run`, for debugging."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from model.config import CALIBRATION, METRICS
from model.machine import usable_cores
from orchestrator.cluster.capacity import loader_processes
from orchestrator.errors import UserError
from orchestrator.experiment.load import Experiment, find_row
from orchestrator.experiment.plan import Ledger, make_plan, train_key
from orchestrator.experiment.prepare import prepare
from orchestrator.figures.table import NOT_APPLICABLE, Cell, Column, Table
from orchestrator.homes import make_home
from orchestrator.site import Site


def run_row(
    experiments: Sequence[Experiment], label: str, seed: int | None, site: Site, say: Callable[[str], None]
) -> Table:
    """Train one row to its end under `<home>/local/<train key>`, score it, and return its numbers.

    Raises:
        UserError: there is no such row or seed, or its data cannot be trained on.
    """
    experiment, row = find_row(experiments, label, seed)
    config = replace(row.train, seed=row.seeds[0] if seed is None else seed)
    alone = replace(experiment, rows=(replace(row, seeds=(config.seed,)),), reference=None)
    prepare(make_plan([alone], Ledger()), Ledger(), site, say)
    # What is wrong with the call or the data is told before torch is imported, which takes seconds.
    import torch

    from model.data.coco import read_for_scoring
    from model.evaluation.scoring import score
    from model.network.checkpoint import require_categories
    from model.network.finite import NonFiniteError
    from model.network.retinanet import load_detector
    from model.training.loop import Progress, TrainingError, train

    # As many as a worker under Ray has: another number of threads sums in another order.
    torch.set_num_threads(max(1, int(experiment.resources.cpus_per_worker)))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # As a worker with all GPUs of this machine would have them.
    resources = replace(experiment.resources, gpus_per_worker=float(torch.cuda.device_count()))
    make_home(site.home)
    folder = site.home / "local" / train_key(config)
    started = time.perf_counter()

    def show(progress: Progress) -> None:
        if not progress.metrics:
            return
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in progress.metrics.items())
        say(f"{time.perf_counter() - started:7.1f} s  update {progress.step}/{progress.num_steps}  {numbers}")

    try:
        train(
            config,
            data_root=site.data_root(config.data.dataset),
            weights_file=site.weights_file(config.model.weights),
            folder=folder,
            local_batch=experiment.resources.local_batch,
            num_loader_processes=loader_processes(resources, {"CPU": float(usable_cores())}),
            report=show,
            device=device,
            use_graphs=resources.cuda_graphs,
        )
    except (ValueError, TrainingError) as error:
        raise UserError(f"row {label!r}: {error}") from error
    checkpoint = folder / f"epoch-{config.schedule.epochs:04d}"
    data = read_for_scoring(site.data_root(config.data.dataset), config.data, row.split)
    require_categories(checkpoint, (data.category_ids, data.category_names), f"split {row.split}")
    try:
        (scores,) = score(load_detector(checkpoint).to(device), data, [row.inference], config.data)
    except NonFiniteError as error:
        raise UserError(f"row {label!r}: {error}") from error
    say(f"checkpoint: {checkpoint}")
    numbers = {**scores.metrics, **scores.calibration}
    return Table(
        title=label,
        columns=tuple(Column(name) for name in METRICS + CALIBRATION),
        rows=(tuple(Cell(numbers[name], absent=NOT_APPLICABLE) for name in METRICS + CALIBRATION),),
        notes=(f"Seed {config.seed}, {row.split}.",),
    )
