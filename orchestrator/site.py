"""Where things are on this machine: results, data, weights, the tracking server and the Ray cluster."""

from collections.abc import Mapping
from dataclasses import dataclass
from os.path import expanduser
from pathlib import Path

from model.config import DataConfig
from model.data.layout import count_images
from orchestrator.addresses import MLFLOW, RAY, require_bare
from orchestrator.errors import UserError
from orchestrator.homes import home_of

ROOT = Path(__file__).parents[1]
"""The folder of the sources: model/, orchestrator/, and in a checkout the rest of the repository."""
CLI_MODULE = "orchestrator.cli.main"
"""What `python -m` runs as `rnc`, in another process or on a cluster."""
TRAIN2017 = {"all": 118_287, "with_boxes": 117_266}
"""Images of COCO's train2017, as published."""
NUM_SHAPES = {"train": 2000, "val": 300, "test": 2000}
"""How many scenes of the embedded data set are drawn, by split; trainings may take fewer of the first two."""
COMMIT = "RNC_GIT_COMMIT"
"""The variable that names the git commit where the sources were sent without their repository."""
COCO_LAYOUT = "train2017/ val2017/ annotations/instances_train2017.json annotations/instances_val2017.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """Paths and addresses; no result depends on them. Nothing is created by reading them."""

    home: Path
    """Everything that the project writes lies under here (RNC_HOME)."""
    coco_root: Path | None = None
    """The data set, a folder or a file: `data.root` of the experiment files, or RNC_COCO_ROOT."""
    weights_root: Path | None = None
    """The folder of pretrained backbones and detectors: `data.weights` of the experiment files, or RNC_WEIGHTS."""
    tracking_uri: str | None = None
    """An MLflow server (MLFLOW_TRACKING_URI); None runs one of our own under `home`."""
    ray_address: str | None = None
    """A Ray cluster (RAY_ADDRESS); None runs one on this machine."""

    def __post_init__(self) -> None:
        # They get into links, cards, errors, and the tasks of workers.
        require_bare(MLFLOW, self.tracking_uri)
        require_bare(RAY, self.ray_address)

    @property
    def storage(self) -> Path:
        """Where Ray keeps checkpoints to resume from."""
        return self.home / "ray"

    @property
    def scored(self) -> Path:
        """Where scored shards of checkpoints are kept; may be deleted at any time."""
        return self.home / "scored"

    def data_root(self, dataset: str) -> Path:
        """Return where a data set lies, a folder or a file; that of `shapes` may not exist yet.

        Raises:
            UserError: any other is asked for, and neither a file nor RNC_COCO_ROOT names it.
        """
        if dataset == "shapes":
            return self.home / "data" / "shapes"
        if self.coco_root is None:
            raise UserError(
                "RNC_COCO_ROOT is not set, and the experiment file has no `data: {root: ...}`; one of them has to name "
                f"the data set: the folder of COCO 2017, which holds {COCO_LAYOUT}, or any other that `rnc data` knows"
            )
        return self.coco_root

    def num_images(self, data: DataConfig) -> int | None:
        """Return the images that a training sees in an epoch, about, without reading annotations; None if unknown.

        Of COCO's train2017 those with boxes count; of other splits all files of the folder, which may be a few more.
        """
        if data.dataset == "shapes":
            there: int | None = NUM_SHAPES["train"]
        else:
            there = count_images(self.coco_root, data.train_split) if self.coco_root else None
            # The published counts, as a plan may be made where the data are not; a split cut short is counted.
            if data.train_split == "train2017" and there in (None, TRAIN2017["all"]):
                there = TRAIN2017["all" if data.train_on_empty_images else "with_boxes"]
        counts = [count for count in (there, data.num_train_images) if count is not None]
        return min(counts, default=None)

    def weights_file(self, name: str | None) -> Path | None:
        """Return the file of pretrained weights that a config names, or None where it names none.

        Raises:
            UserError: RNC_WEIGHTS is not set, or holds no such file.
        """
        if name is None:
            return None
        if self.weights_root is None:
            raise UserError(
                "RNC_WEIGHTS is not set, and the experiment file has no `data: {weights: ...}`; one of them has to "
                f"name the folder that holds {name}"
            )
        path = self.weights_root / name
        if not path.is_file():
            raise UserError(
                f"{self.weights_root}: holds no file {name}; download it there, or name the folder that has it by "
                "`data: {weights: ...}` in the experiment file, or by RNC_WEIGHTS"
            )
        return path


def site_from_environment(environ: Mapping[str, str]) -> Site:
    """Read the site from RNC_HOME, RNC_COCO_ROOT, RNC_WEIGHTS, MLFLOW_TRACKING_URI and RAY_ADDRESS; empty is unset.

    Raises:
        UserError: a folder is named that does not exist, RNC_HOME is a file, or an address holds a password;
            `logins_apart` takes it out.
    """
    # Absolute, since the workers of a training may run in other folders.
    home = home_of(environ)
    if home.exists() and not home.is_dir():
        raise UserError(f"RNC_HOME: {home} is a file, expected a folder (it may be one that does not exist yet)")
    return Site(
        home=home,
        coco_root=_data_set(environ, "RNC_COCO_ROOT"),
        weights_root=_folder(environ, "RNC_WEIGHTS"),
        tracking_uri=environ.get("MLFLOW_TRACKING_URI") or None,
        # Left to Ray, "local" would start one on all interfaces, with a third of the memory for objects.
        ray_address=None if (address := environ.get("RAY_ADDRESS") or None) == "local" else address,
    )


def _data_set(environ: Mapping[str, str], name: str) -> Path | None:
    """A data set may be one file, such as a COCO JSON whose images lie beside it."""
    path = _absolute(environ[name]) if environ.get(name) else None
    return path if path is not None and path.is_file() else _folder(environ, name)


def _folder(environ: Mapping[str, str], name: str) -> Path | None:
    if not environ.get(name):
        return None
    path = _absolute(environ[name])
    if not path.is_dir():
        raise UserError(f"{name}: {path} is no folder; correct {name}, or unset it")
    return path


def _absolute(path: str) -> Path:
    # Not Path.expanduser(), which fails where a shell leaves the name of an unknown user as it is written.
    return Path(expanduser(path)).absolute()
