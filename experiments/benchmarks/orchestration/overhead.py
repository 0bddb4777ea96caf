"""What Ray, MLflow and this project's own layer cost a training step, and how long a trial takes to start.

The same training of the miniature suite runs alone (`rnc run`) and through Ray and MLflow (`rnc submit`), in turn, with
the same seed on one thread; the ratio of their times per step is the overhead. Both must end with the same numbers.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import click

EXPERIMENT = """
suite: overhead
extends: {parent}
only: [RetinaNet-Conf]
reference: null
defaults:
  train:
    data: {{num_train_images: {images}, num_val_images: 40}}
    schedule: {{epochs: {epochs}, lr_drop_epochs: [], validate_every: {epochs}}}
resources: {{num_workers: 1, cpus_per_worker: 1}}
"""
ROW = "RetinaNet-Conf"
PARENT = Path(__file__).parents[2] / "miniature" / "table1_heads.yaml"
METRICS = ("AP", "AP50", "AP75", "APs", "APm")


@click.command(help=__doc__)
@click.option("--pairs", default=3, show_default=True, help="Trainings of each kind.")
@click.option("--images", default=600, show_default=True, help="Training images.")
@click.option("--epochs", default=3, show_default=True)
def main(pairs: int, images: int, epochs: int) -> None:
    """Measure, and print ratios."""
    bare, through, starts, numbers = [], [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "overhead.yaml"
        file.write_text(EXPERIMENT.format(parent=PARENT, images=images, epochs=epochs))
        for pair in range(pairs):
            alone = _alone(file, Path(scratch) / f"alone-{pair}", epochs)
            submitted = _submitted(file, Path(scratch) / f"submitted-{pair}", epochs)
            bare.append(alone[0])
            through.append(submitted[0])
            starts.append(submitted[2])
            numbers += [alone[1], submitted[1]]
            click.echo(
                f"pair {pair + 1}: {1e3 * alone[0]:.2f} ms an image alone, {1e3 * submitted[0]:.2f} ms through Ray and "
                f"MLflow, ratio {submitted[0] / alone[0]:.3f}; first update {submitted[2]:.1f} s after the trial began"
            )
    ratios = [second / first for first, second in zip(bare, through, strict=True)]
    same = all(number == numbers[0] for number in numbers)
    spread = f"from {min(ratios) - 1:+.1%} to {max(ratios) - 1:+.1%}"
    click.echo(f"overhead of a step: {statistics.median(ratios) - 1:+.1%} ({spread})")
    click.echo(
        f"trial to first update: {statistics.median(starts):.1f} s (from {min(starts):.1f} to {max(starts):.1f})"
    )
    click.echo(f"final numbers: {'the same' if same else 'DIFFERENT'} in all {len(numbers)} trainings, {numbers[0]}")
    sys.exit(0 if same else 1)


def _alone(file: Path, home: Path, epochs: int) -> tuple[float, dict[str, float]]:
    """Seconds an image in the median epoch, and the final numbers."""
    done = _rnc(home, "run", str(file), "--row", ROW, "--format", "json")
    points = re.findall(r"update (\d+)/\d+ .*perf/images_per_s ([\d.e+]+)", done.stderr)
    return _seconds([(int(step), float(speed)) for step, speed in points], epochs), _numbers(done.stdout)


def _submitted(file: Path, home: Path, epochs: int) -> tuple[float, dict[str, float], float]:
    """Seconds an image in the median epoch, the final numbers, and seconds from trial to first update."""
    done = _rnc(home, "submit", str(file), "--format", "json")
    _rnc(home, "ui", "--stop")
    (journal,) = home.glob("ray/overhead/*/metrics.jsonl")
    reports = [entry for line in journal.read_text().splitlines() if "metrics" in (entry := json.loads(line))]
    points = [(r["step"], r["metrics"]["perf/images_per_s"]) for r in reports if "perf/images_per_s" in r["metrics"]]
    return _seconds(points, epochs), _numbers(done.stdout), reports[0]["metrics"]["perf/startup_s"]


def _seconds(points: list[tuple[int, float]], epochs: int) -> float:
    """From (step, images a second since the epoch began): seconds an image in the median epoch."""
    ends = points[-1][0] // epochs
    return 1 / statistics.median(speed for step, speed in points if step % ends == 0)


def _numbers(output: str) -> dict[str, float]:
    (table,) = json.loads(output)
    return {name: table["rows"][0][name] for name in METRICS}


def _rnc(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    rnc = Path(sys.executable).parent / "rnc"
    done = subprocess.run(
        [rnc, *arguments], env=os.environ | {"RNC_HOME": str(home)}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise click.ClickException(
            f"rnc {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        )
    return done


if __name__ == "__main__":
    main()
