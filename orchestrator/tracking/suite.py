"""A suite: its tables, and what MLflow holds of them; opened once, read once, and again where something changed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from orchestrator.errors import UserError
from orchestrator.experiment.cost.seeds import Asked, grown
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import Ledger, Plan, gather, lacking
from orchestrator.site import Site
from orchestrator.tracking.artifacts import check_files
from orchestrator.tracking.reading.live_runs import LiveRuns
from orchestrator.tracking.records import ledger_of
from orchestrator.tracking.runs import Run, Tracking, open_tracking, read_runs
from orchestrator.tracking.server import existing_tracking_server, tracking_server


def site_of(experiments: Sequence[Experiment], site: Site) -> Site:
    """Return the site with the data and weights that the tables of a suite name themselves.

    Raises:
        UserError: the tables read several data sets, or take their weights from several folders.
    """
    on_outside = [one for one in experiments if any(row.train.data.dataset != "shapes" for row in one.rows)]
    with_weights = [one for one in experiments if any(row.train.model.weights for row in one.rows)]
    return replace(
        site,
        coco_root=_the_one("data.root", {_path(one.data.root, site.coco_root): one for one in on_outside})
        or site.coco_root,
        weights_root=_the_one("data.weights", {_path(one.data.weights, site.weights_root): one for one in with_weights})
        or site.weights_root,
    )


def _path(named: str | None, usual: Path | None) -> Path | None:
    return usual if named is None else Path(named)


def _the_one(setting: str, places: Mapping[Path | None, Experiment]) -> Path | None:
    if len(places) > 1:
        # The environment may say it for a file that does not.
        named = ", ".join(f"{place or 'nowhere'} for {one.path}" for place, one in places.items())
        raise UserError(
            f"{setting} is {named}, but a suite has one place: its results are known by their settings, whatever was "
            f"trained on; give one of the files a suite of its own (suite: NAME), or the same {setting}"
        )
    return next(iter(places), None)


class Suite:
    """The tables of one suite on one site; what it says of MLflow is what it read last."""

    def __init__(self, experiments: Sequence[Experiment], site: Site) -> None:
        """Take the tables; nothing is started, created or read.

        Raises:
            UserError: they belong to several suites, or name several data sets.
        """
        self._listed = gather(experiments)
        self.site = site_of(experiments, site)
        self.name = self._listed.suite
        self._asked: Asked = frozenset()
        self._wanted: Plan | None = None
        self._tracking: Tracking | None = None
        self._runs: list[Run] | None = None
        self._live = LiveRuns()
        self._ledger: Ledger | None = None
        self._verified: Ledger | None = None

    @property
    def experiments(self) -> tuple[Experiment, ...]:
        """The tables, with the seeds that were added to them by now."""
        return self.wanted.experiments

    @property
    def wanted(self) -> Plan:
        """All that these tables need, by key, whatever is done of it."""
        if not any(experiment.seed_rule for experiment in self._listed.experiments):
            return self._listed
        if self._wanted is None:
            self._wanted = self.wanted_with(frozenset())
        return self._wanted

    def wanted_with(self, asked: Asked) -> Plan:
        """Return what these tables would need, if these trainings were added to those that they have by now."""
        return gather([grown(one, self.ledger, self._asked | asked) for one in self._listed.experiments])

    def ask_for(self, asked: Asked) -> None:
        """Add trainings of further seeds, which this object remembers until MLflow holds them."""
        self._asked |= asked
        self._wanted = None

    @property
    def storage(self) -> Path:
        """The folder in which Ray keeps the suite's checkpoints, and trainings their logs and journals."""
        return self.site.storage / self.name

    def connect(self, *, create: bool = True) -> Tracking:
        """Start the MLflow server if it is ours and not running, and make the suite's experiment if told so.

        Raises:
            UserError: the server does not answer, or its experiment is deleted.
        """
        self.refresh()
        self._tracking = open_tracking(tracking_server(self.site), self.name, create=create)
        return self._tracking

    @property
    def tracking(self) -> Tracking | None:
        """Where MLflow keeps the suite; None where no server was ever started."""
        if self._tracking is None and (uri := existing_tracking_server(self.site)) is not None:
            self._tracking = open_tracking(uri, self.name, create=False)
        return self._tracking

    @property
    def connection(self) -> Tracking:
        """Where MLflow keeps the suite, for what cannot go on without a server.

        Raises:
            UserError: none was ever started.
        """
        if self.tracking is None:
            raise UserError(f"nothing of suite {self.name} was ever recorded here; `rnc submit` does that")
        return self.tracking

    @property
    def uri(self) -> str | None:
        """The address of the MLflow server; None where none was ever started."""
        return None if self.tracking is None else self.tracking.uri

    @property
    def mlflow_runs(self) -> list[Run]:
        """Its runs of every kind, newest first."""
        if self._runs is None:
            self._runs = [] if self.tracking is None else read_runs(self.tracking)
        return self._runs

    @property
    def ledger(self) -> Ledger:
        """What MLflow says that it holds."""
        if self._ledger is None:
            self._ledger = ledger_of(self.mlflow_runs)
        return self._ledger

    @property
    def verified(self) -> Ledger:
        """The ledger after a look at the files of what these tables need; what has lost its files is not finished."""
        if self._verified is None:
            keys = [*self.wanted.trainings, *self.wanted.evaluations]
            self._verified = self.ledger if self.tracking is None else check_files(self.tracking, self.ledger, keys)
        return self._verified

    def make_plan(self, *, verified: bool = False) -> Plan:
        """Return what these tables need, and what of it is missing; `verified` looks at files as well."""
        return lacking(self.wanted, self.verified if verified else self.ledger)

    def look_again(self) -> None:
        """Read what runs, began or ended since the last such look; for who looks every few seconds.

        Raises:
            UserError: the server does not answer; what was read before is forgotten.
        """
        self.refresh()
        if self.tracking is not None:
            self._runs = self._live.look(self.tracking)
            self._ledger = self._live.ledger_of(self._runs)

    def refresh(self) -> None:
        """Forget what was read, because something was written or time has passed."""
        if self._tracking is not None and self._tracking.experiment_id is None:
            self._tracking = None  # somebody may have made it by now
        self._runs = self._ledger = self._verified = self._wanted = None
