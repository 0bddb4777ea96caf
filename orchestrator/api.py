"""The Python API: a suite with its verbs, as notebooks and `rnc` use it: plan, submit, status, tables, checkpoints.

    import orchestrator as rnc

    suite = rnc.open("experiments/demo")
    suite.plan()                          # what it would train and score, and what that costs
    suite.submit()                        # trains and scores what is missing
    suite.table("table1").to_pandas()     # the results, as far as they are measured
    suite.best().load()                   # the best detector, as a function of images

Nothing here imports torch, Ray or MLflow before a verb needs it.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.machine import usable_cores
from model.settings import suggestion
from orchestrator.errors import Say, UserError
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import lacking
from orchestrator.experiment.prepare import MOST_LOOKED_AT, look_ahead
from orchestrator.figures.table import Table
from orchestrator.figures.texts import printable
from orchestrator.tracking.suite import Suite

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]

    from model.inference.predictor import Predictor
    from orchestrator.checkpoint.pull import Provenance
    from orchestrator.driver.submit import Submitted
    from orchestrator.experiment.cost.estimate import PlanTime
    from orchestrator.experiment.plan import Plan
    from orchestrator.report.compare import Comparison
    from orchestrator.report.files import Report
    from orchestrator.tracking.artifacts import Progress


def tell(text: str) -> None:
    """Print progress to standard error; the `say` of every verb that is given no other."""
    print(printable(text), file=sys.stderr)


def quiet(done: int, total: int) -> None:
    """Show no progress."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A checkpoint that was fetched out of MLflow, its sha256 verified."""

    folder: Path
    """Weights, config, inference settings and a card of where they come from."""
    provenance: "Provenance"

    @property
    def metrics(self) -> dict[str, float]:
        """The twelve COCO numbers of its row, 0 to 100."""
        return dict(self.provenance.metrics)

    def load(self, *, device: str | None = None, **settings: Any) -> "Predictor":
        """Load it as a function of images that returns named boxes; see `model.load`.

        Args:
            device: such as "cuda:1"; None takes the GPU if there is one.
            settings: inference settings to use instead of the row's own, such as confidence_exponent=0.2.

        Raises:
            ValueError: a setting has no meaning for it.
        """
        import model

        return model.load(self.folder, device=device, **settings)


class OpenSuite(Suite):
    """The tables of one suite, and all that can be done with them.

    What it says of MLflow is what it read last: verbs that write read again; `refresh()` is for what others wrote.
    """

    def plan(self, *, gpus: int | None = None, images_per_s: float | None = None, quick: bool = False) -> Table:
        """Show what would be trained and scored, how long that takes, and how much disk; nothing is started.

        Args:
            gpus: the number of GPUs that the hours are estimated for.
            images_per_s: training throughput of one GPU, or CPU worker, where none was measured.
            quick: do not look whether MLflow still holds the files of finished runs.

        Raises:
            UserError: MLflow does not answer.
        """
        from orchestrator.report.plan_table import plan_table

        return plan_table(*self.costed_plan(gpus=gpus, images_per_s=images_per_s, quick=quick))

    def costs(self, *, images_per_s: float | None = None, quick: bool = False) -> Table:
        """Show what each row would cost, if it alone were submitted now, and with which rows it shares trainings.

        Args:
            images_per_s: see `plan`.
            quick: see `plan`.

        Raises:
            UserError: MLflow does not answer.
        """
        from orchestrator.report.plan_table import costs_table

        return costs_table(*self.costed_plan(images_per_s=images_per_s, quick=quick))

    def costed_plan(
        self, *, gpus: int | None = None, images_per_s: float | None = None, quick: bool = False
    ) -> "tuple[Plan, PlanTime]":
        """Return the plan, and the hours and bytes that it comes to; see `plan`."""
        from orchestrator.experiment.cost.estimate import estimate_time

        plan = self.make_plan(verified=not quick)
        ledger = self.ledger if quick else self.verified
        cpus = float(usable_cores())
        return plan, estimate_time(plan, ledger, self.site.num_images, gpus=gpus, cpus=cpus, images_per_s=images_per_s)

    def look_ahead(self, say: Say = tell, *, gpus: int | None = None, most_images: int = MOST_LOOKED_AT) -> list[str]:
        """Check weights, disk, data and resources as a submit does; return what would stop one from here.

        Where RAY_ADDRESS, or more `gpus` than this machine has, say that trainings run elsewhere, its own resources are
        not asked for; where the whole submit does, what this machine lacks of weights and data is said alone.

        Args:
            say: told what is there, and where results lie.
            gpus: see `plan`.
            most_images: of a split, up to which image files are looked at as well.
        """
        from orchestrator.cluster.capacity import local_cluster, require_plan_fits
        from orchestrator.cluster.environment import is_jobs_address
        from orchestrator.homes import describe_home

        say(describe_home(self.name, self.experiments[0].path.parent, self.site.home))
        plan, address, here = self.make_plan(), self.site.ray_address, local_cluster()
        is_here = (gpus or 0) <= here.total("GPU") if address is None else not is_jobs_address(address)
        stops: list[str] = []
        if is_here and address is None:
            try:
                require_plan_fits(plan, here)
            except UserError as error:
                stops.append(str(error))
        return stops + look_ahead(plan, self.ledger, self.site, say, is_here=is_here, most_images=most_images)

    def submit(
        self,
        say: Say = tell,
        *,
        prune: bool = False,
        budget: float | None = None,
        images_per_s: float | None = None,
        since: int | None = None,
    ) -> "Submitted":
        """Train and score what is missing, on this machine or the cluster at RAY_ADDRESS, and record it in MLflow.

        Ctrl-C stops cleanly; the next submit goes on from the last checkpoints. A suite that somebody else submits
        already is looked on at, and taken over when that submit ends.

        Args:
            say: is told what happens.
            prune: first end trainings that no row of these tables asks for any more.
            budget: GPU-hours of training, or CPU-hours where a training takes no GPU; what would go beyond is named
                and left missing.
            images_per_s: training throughput of one GPU, or CPU worker, where none was measured; without one, the
                first training runs whatever the budget, and tells.
            since: when you began to wait for this, in milliseconds since 1970; what was cancelled since then is left
                out, as it is where the submit itself waits.

        Returns:
            The exit code (0 also where the budget left something out, 1 where a row failed or a table is left out, 130
            after Ctrl-C), the hours of training, and the tables, without those whose results rest on two versions of
            the data.

        Raises:
            UserError: something that must be right before the start is not; nothing was started.
        """
        from orchestrator.driver.submit import Bounds, submit

        return submit(self, say, prune=prune, bounds=Bounds(hours=budget, images_per_s=images_per_s), since=since)

    def status(self, *, whole: bool = False) -> Table:
        """Show how far each row is, and why not further; `whole` does not cut long reasons."""
        from orchestrator.driver.lock import last_renewal, without_the_dead
        from orchestrator.report.status_table import status_table

        # A driver that was killed left its runs RUNNING; the next submit closes them.
        ledger = without_the_dead(self.ledger, self.mlflow_runs, lambda: last_renewal(self))
        return status_table(lacking(self.wanted, ledger), ledger, None if whole else self.storage)

    def reports(self, *, bootstrap: bool = True, by_size: bool = False) -> "list[Report]":
        """Measure every table as far as MLflow holds it; `bootstrap` adds intervals, seconds for each new evaluation.

        With `by_size` the rows know those of APs to ARl also where no table shows one of them.

        Raises:
            UserError: the results of a table rest on two versions of the data.
        """
        from orchestrator.report.files import make_reports

        return make_reports(self, bootstrap=bootstrap, by_size=by_size)

    def table(self, name: str | None = None, *, bootstrap: bool = True) -> Table:
        """Return one results table, as far as it is measured; it has `to_pandas()`, `to_markdown()` and others.

        Args:
            name: of the table, or the beginning of it; None where the suite has only one.
            bootstrap: whether differences get intervals; see `reports`.

        Raises:
            UserError: there is no such table, or several could be meant; or its results rest on two versions of the
                data.
        """
        experiment = self._experiment(name)
        # This table alone, so that intervals are not computed for the others.
        (report,) = type(self)([experiment], self.site).reports(bootstrap=bootstrap)
        return report.table

    def classes(self, name: str | None = None, *, row: str | None = None, by_ap: bool = False) -> Table:
        """Return AP, AP50 and AP75 of each class in each row of a table, with intervals and differences.

        Its `to_pandas()` has a record for each class and row; people see rows side by side, or one with intervals.

        Args:
            name: of the table, or the beginning of it; None where the suite has only one.
            row: a label; None takes all.
            by_ap: the classes of least AP first; else they are by id.

        Raises:
            UserError: there is no such table or row, or no matches of it are known.
        """
        from orchestrator.report.classes.table import tables_of

        experiment = self._experiment(name)
        (report,) = type(self)([experiment], self.site).reports()
        return tables_of([(experiment.name, report.classes)], row, by_ap=by_ap)[0]

    def compare(
        self, row_a: str, row_b: str, *, table: str | None = None, metric: str = "AP", images: bool = True
    ) -> "Comparison":
        """Return by how much one row is above another, between which bounds, and which images decide it.

        Args:
            row_a: a label.
            row_b: the label of the row to compare with.
            table: of both, or the beginning of its name; None looks in all.
            metric: "AP", "AP50" or "AP75".
            images: find those that decide, in about 5 s on two cores for each seed of each row on 2000 drawn images.

        Returns:
            The values and their difference with its 95 % interval, 0 to 100, and the ids of images with what the
            difference loses without each, the weightiest first.

        Raises:
            UserError: there is no such row, table or metric, a row is not measured or its matches are lost, or the
                rows were measured on different data.
        """
        from orchestrator.report.compare import compare

        suite = self if table is None else type(self)([self._experiment(table)], self.site)
        return compare(suite, (row_a, row_b), metric, images=images)

    def runs(self) -> "pd.DataFrame":
        """Return the suite's trainings and evaluations in MLflow, a row each, newest first: params, metrics, tags."""
        import pandas as pd

        return pd.DataFrame(
            {
                "run_id": run.run_id,
                "kind": run.kind,
                "name": run.name,
                "status": run.status,
                "key": run.key,
                **{f"params.{name}": value for name, value in run.params.items()},
                **{f"metrics.{name}": value for name, value in run.metrics.items()},
                **{f"tags.{name}": value for name, value in run.tags.items()},
            }
            for run in self.mlflow_runs
        )

    def best(self, table: str | None = None, *, metric: str = "AP") -> Checkpoint:
        """Fetch the best checkpoint of a table, or of the suite; see `pull`."""
        return self.pull(table=table, metric=metric)

    def pull(
        self,
        row: str = "best",
        *,
        table: str | None = None,
        metric: str = "AP",
        output: str | Path | None = None,
        say: Say = tell,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Checkpoint:
        """Fetch the checkpoint of a row out of MLflow.

        Args:
            row: its label, `table:label`, or "best".
            table: of the row, or the beginning of its name; None looks in all, and refuses a label under which they
                have different results.
            metric: what is best, and which of several seeds is taken.
            output: the folder; None takes one of its own under RNC_HOME/pulled.
            say: is told what was fetched.
            progress: is given bytes done and bytes in all.

        Raises:
            UserError: nothing fits, the files are gone or damaged, or the folder holds something else.
        """
        from orchestrator.checkpoint.find import Query
        from orchestrator.checkpoint.pull import pull, read_provenance

        query = Query(row=row, table=table, suite=self.name, metric=metric)
        folder = pull(query, self.site, output, say, progress)
        provenance = read_provenance(folder)
        assert provenance is not None
        return Checkpoint(folder=folder, provenance=provenance)

    def cancel(self, row: str, seed: int | None = None, *, say: Say = tell) -> None:
        """End the training of a row that a submit elsewhere runs; its checkpoints stay.

        Raises:
            UserError: there is no such row or seed, or nobody runs the suite.
        """
        from orchestrator.driver.cancel import cancel_row

        cancel_row(self, row, seed, say)

    def repair(
        self, *, say: Say = tell, dry_run: bool = False, deep: bool = False, progress: "Progress" = quiet
    ) -> int:
        """Mend what killed processes, damaged files and edits in MLflow left behind; returns how much of it there was.

        Args:
            say: told what it is.
            dry_run: whether nothing is mended.
            deep: whether every file is read against its digest, as `verify` does.
            progress: is given bytes read and bytes in all.
        """
        from orchestrator.driver.repair.defects import find_defects, mend, repair
        from orchestrator.driver.repair.verify import verify

        number = repair(self, say, dry_run=dry_run)
        if not deep:
            return number
        told = {defect.key for defect in find_defects(self)} if dry_run else set()  # they are mended by now
        damaged = [defect for defect in verify(self, progress).defects if defect.key not in told]
        return number + mend(self, damaged, say, dry_run=dry_run)

    def verify(self, *, say: Say = tell, progress: "Progress" = quiet) -> bool:
        """Read every file of the suite, on the storage and in MLflow, against its digest; nothing is written.

        Args:
            say: told of each that is damaged, and at the end how many were read.
            progress: is given bytes read and bytes in all.

        Returns:
            Whether all are sound.
        """
        from orchestrator.driver.repair.verify import verify

        verified = verify(self, progress)
        for defect in verified.defects:
            say(defect.text)
        say(f"suite {self.name}: {verified}")
        return not verified.defects

    def gc(self, *, delete: bool = False) -> list[Table]:
        """Show which checkpoints and caches nothing needs, and free them if told so.

        Raises:
            UserError: somebody runs the suite just now.
        """
        from orchestrator.driver.garbage import collect_garbage

        return collect_garbage(self, deletes=delete)

    def links(self) -> dict[str, str]:
        """Bring the suite's views in MLflow up to date, and return the addresses of its tables and curves.

        Raises:
            UserError: nothing of the suite was ever recorded.
        """
        from orchestrator.report.pages import show_suite

        self.connect(create=False)
        return show_suite(self)

    def _experiment(self, name: str | None) -> Experiment:
        held = {experiment.name: experiment for experiment in self.experiments}
        # A whole name counts, though longer names may begin with it.
        fitting = [held[name]] if name in held else [e for one, e in held.items() if one.startswith(name or "")]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise UserError(f"table {name!r} may be any of {', '.join(e.name for e in fitting)}; name one of them")
        raise UserError(f"suite {self.name} has no table {name!r}; {suggestion(name or '', list(held))}")
