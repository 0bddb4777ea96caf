"""Builds the images of deploy/docker with buildah, without a container engine, and runs commands in what was built."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.deploy.programs import program

ROOT = Path(__file__).parents[2]
FREE_GB = 30
"""At its highest, the image with CUDA lies on the disk three times."""
PACKAGES = ("python3", "python3-venv", "wget")
UNPRIVILEGED = "--reuid=10001 --regid=10001 --clear-groups --bounding-set=-all --inh-caps=-all --no-new-privs"
ENTER = f"""
set -eu
mount --bind "$1" "$1" && mount -o remount,bind,ro "$1"
mount -t tmpfs -o mode=1777 tmpfs "$1/tmp" && mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev"
root=$1; shift
exec chroot "$root" /usr/bin/setpriv {UNPRIVILEGED} /usr/bin/env -i -C /app "$@"
"""
"""Enters a root file system as a hardened container does: read-only, unprivileged, with only /tmp to write to."""


@dataclass(frozen=True)
class Builder:
    """A store of images of its own."""

    folder: Path

    def command(self, *words: str) -> list[str]:
        """Return a command of buildah on this store."""
        store = ("--root", str(self.folder / "storage"), "--runroot", str(self.folder / "run"))
        return [program("buildah"), *store, *words]

    def run(self, *words: str, seconds: float = 60) -> str:
        """Run one to its end, and return what it printed."""
        environment = os.environ | {"BUILDAH_ISOLATION": "chroot", "TMPDIR": str(self.folder)}
        done = subprocess.run(
            self.command(*words), env=environment, capture_output=True, text=True, timeout=seconds, check=False
        )
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        return done.stdout

    def make_base(self) -> None:
        """Make localhost/base: Debian with Python."""
        archive = self.folder / "base.tar"
        words = ["--variant=apt", f"--include={','.join(PACKAGES)}", "bookworm", str(archive)]
        done = subprocess.run([program("mmdebstrap"), *words], capture_output=True, text=True, timeout=300, check=False)
        if done.returncode != 0:
            pytest.skip(f"mmdebstrap cannot make a Debian here: {done.stderr.strip().splitlines()[-1]}")
        container = self.run("from", "scratch").strip()
        self.run("add", container, str(archive), "/", seconds=120)
        self.run("commit", "--rm", container, "localhost/base", seconds=120)
        archive.unlink()

    def build(self, dockerfile: str, context: Path, tag: str, planted: str, seconds: float) -> None:
        """Build an image; `planted` stands in the settings that are handed to it as a secret."""
        words = ["bud", "--file", str(context / dockerfile), "--tag", tag, "--build-arg", "BASE_IMAGE=localhost/base"]
        settings = self.folder / "uv.toml"
        lines = [f"# {planted}", "native-tls = true"]
        cache = _uv_cache()
        if cache is not None:  # what `make setup` has downloaded is not downloaded again
            words += ["--volume", f"{cache}:/uv-cache"]
            lines += ['cache-dir = "/uv-cache"']
        settings.write_text("\n".join(lines) + "\n")
        words += ["--secret", f"id=uv,src={settings}", "--volume", "/etc/ssl/certs:/etc/ssl/certs:ro"]
        if Path("/etc/pip.conf").is_file():
            words += ["--secret", "id=pip,src=/etc/pip.conf"]
        self.run(*words, str(context), seconds=seconds)

    @contextmanager
    def mounted(self, tag: str) -> Iterator[Path]:
        """Yield the root of an image."""
        container = self.run("from", tag).strip()
        try:
            yield Path(self.run("mount", container).strip())
        finally:
            self.run("umount", container)
            self.run("rm", container)


@contextmanager
def builder(folder: Path) -> Iterator[Builder]:
    """Yield a builder, and leave nothing behind; skip where there can be none."""
    for name in ("buildah", "mmdebstrap", "unshare", "setpriv"):
        program(name)
    if os.geteuid() != 0:
        pytest.skip("building an image without a container engine takes root")
    free = shutil.disk_usage(folder).free / 1e9
    if free < FREE_GB:
        pytest.skip(f"{folder} has {free:.0f} GB free, and building the image takes {FREE_GB}")
    made = Builder(folder)
    try:
        yield made
    finally:
        subprocess.run(made.command("umount", "--all"), capture_output=True, timeout=120, check=False)
        subprocess.run(["umount", folder / "storage" / "overlay"], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


def run_hardened(root: Path, environment: Sequence[str], *words: str) -> "subprocess.CompletedProcess[str]":
    """Run a command in the root of an image as a hardened container does, with this environment and no other."""
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ENTER, "sh", str(root)]
    return subprocess.run([*command, *environment, *words], capture_output=True, text=True, timeout=120, check=False)


def checkout(folder: Path) -> Path:
    """Copy what git has, and what it does not have yet, as a builder finds it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def _uv_cache() -> str | None:
    uv = Path(sys.executable).with_name("uv")
    if not uv.is_file():
        return None
    return subprocess.run([uv, "cache", "dir"], capture_output=True, text=True, check=True).stdout.strip()
