"""Builds the Dockerfile without a container engine, and runs what comes out as a container would.

buildah builds in a chroot, so no daemon is needed, only root; where no overlay can be mounted, its plain ``vfs`` storage copies every
layer. The base images are small Debians with Python 3.11 made by mmdebstrap, kept between runs, and given the names that FROM asks for.
"""

from __future__ import annotations

import configparser
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.peers import missing, need

ROOT = Path(__file__).resolve().parents[2]
BASE = "docker.io/library/python:3.11-slim-bookworm"
BUILD_BASE = "docker.io/library/python:3.11-bookworm"
SUITE = "bookworm"
TAG = "localhost/postbus:test"
REVISION = "0123abc"
PACKAGES = "ca-certificates,python3-minimal,python3-venv,python3-pip"
BASES = {BASE: PACKAGES, BUILD_BASE: f"{PACKAGES},gcc,libc6-dev,python3-dev"}
"""The two images that the Dockerfile stands on, by name: packages. The second has a C compiler."""
EXCLUDED = ("doc", "locale", "man", "info")
"""Folders under /usr/share that only make the base image larger."""

COMMAND_TIMEOUT_S = 600
REMEDY = "apt-get install buildah mmdebstrap, and run as root"


def run(*command: str | Path, environment: Mapping[str, str] | None = None) -> str:
    """Run *command* and return its standard output; what it says on standard error is part of the failure."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False, env=environment)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def base_tree(packages: str) -> Path:
    """Return the archive of a base image's files; made by the first run (20 s), then kept in the user's cache folder."""
    mmdebstrap = need("mmdebstrap", REMEDY)
    options = [f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in EXCLUDED]
    made_of = hashlib.sha256(" ".join([SUITE, packages, *options]).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "postbus-tests"
    tree = cache / f"{SUITE}-{made_of}.tar"
    if not tree.exists():
        cache.mkdir(parents=True, exist_ok=True)
        draft = cache / f"{tree.stem}-{os.getpid()}.tar"
        try:
            run(mmdebstrap, "--quiet", "--variant=minbase", f"--include={packages}", *options, SUITE, draft)
            draft.rename(tree)
        finally:
            draft.unlink(missing_ok=True)
    return tree


def pip_settings() -> dict[str, str]:
    """Return how pip is set up here (index, certificates), from its files and variables alike; the build needs the same."""
    listed = run(sys.executable, "-m", "pip", "config", "list").splitlines()
    pairs = [(key, shlex.split(value)) for key, _, value in (line.partition("=") for line in listed)]
    settings = {key.rpartition(".")[2]: words[0] for key, words in pairs if words}
    bundle = os.environ.get("REQUESTS_CA_BUNDLE")
    return ({"cert": bundle} if bundle else {}) | settings


def in_store(folder: Path, driver: str) -> list[str]:
    """Return the start of a buildah command that keeps everything in *folder*."""
    return [need("buildah", REMEDY), f"--root={folder}/root", f"--runroot={folder}/run", f"--storage-driver={driver}"]


def can_overlay(folder: Path) -> bool:
    """Return whether overlays can be mounted in *folder*; they cannot where it lies on an overlay itself, as in a container."""
    trial = [*in_store(folder, "overlay"), "info"]
    return subprocess.run(trial, capture_output=True, timeout=COMMAND_TIMEOUT_S, check=False).returncode == 0


class Store:
    """Images and containers in a folder of their own, which ``close`` removes."""

    def __init__(self, folder: Path) -> None:
        if os.geteuid() != 0:
            missing("root", REMEDY)
        self._folder = folder
        self._environment = os.environ | {"TMPDIR": str(folder), "BUILDAH_ISOLATION": "chroot"}
        self._buildah = in_store(folder, "overlay")
        if not can_overlay(folder / "trial"):
            self._buildah = in_store(folder, "vfs")

    def buildah(self, *arguments: str | Path) -> str:
        """Run buildah in this store."""
        return run(*self._buildah, *arguments, environment=self._environment)

    def import_bases(self) -> None:
        """Make the base images, under the names that FROM asks for."""
        for name, packages in BASES.items():
            context = self._folder / name.rpartition(":")[2]
            context.mkdir()
            (context / "Dockerfile").write_text('FROM scratch\nADD tree.tar /\nCMD ["python3"]\n')
            tree = base_tree(packages)
            try:
                os.link(tree, context / "tree.tar")
            except OSError:
                shutil.copyfile(tree, context / "tree.tar")
            self.buildah("build", "--quiet", "--tag", name, context)

    def build(self, tag: str, **arguments: str) -> None:
        """Build the repository's Dockerfile from the base image, fetching nothing but wheels."""
        settings = pip_settings()
        file = configparser.RawConfigParser()
        file["global"] = settings
        secret = self._folder / "pip.conf"
        with secret.open("w") as stream:
            file.write(stream)
        paths = [path for path in settings.values() if path.startswith("/") and Path(path).exists()]
        volumes = [f"--volume={path}:{path}:ro" for path in paths]
        stated = [f"--build-arg={name}={value}" for name, value in ({"PYTHON_IMAGE": BASE, "BUILD_IMAGE": BUILD_BASE} | arguments).items()]
        options = ("--quiet", "--pull-never", "--network=host", "--format=docker", f"--secret=id=pip,src={secret}")
        self.buildah("build", *options, *volumes, *stated, "--tag", tag, ROOT)

    def image(self, tag: str) -> Image:
        """Return what *tag* says of itself, and its files as a folder."""
        described = json.loads(self.buildah("inspect", "--type", "image", tag))["Docker"]["config"]
        container = self.buildah("from", "--pull-never", tag).strip()
        return Image(described, Path(self.buildah("mount", container).strip()))

    def close(self) -> None:
        """Remove everything this store made."""
        self.buildah("umount", "--all")
        self.buildah("rm", "--all")
        shutil.rmtree(self._folder)


@contextmanager
def built(folder: Path) -> Iterator[Image]:
    """Build the image in *folder*; both are gone at the end."""
    store = Store(folder)
    try:
        store.import_bases()
        store.build(TAG, REVISION=REVISION)
        yield store.image(TAG)
    finally:
        store.close()


ISOLATE = """
set -eu
root=$1 user=$2 folder=$3; shift 3
mount --bind "$root" "$root"
while [ "$1" != -- ]; do mkdir -p "$root$1"; mount --bind "$2" "$root$1"; shift 2; done; shift
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom; do : > "$root/dev/$device"; mount --bind "/dev/$device" "$root/dev/$device"; done
mkdir "$root/dev/shm"; mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -o remount,ro,bind "$root"
cd "$root"
exec setpriv --no-new-privs chroot --userspec="$user" --groups= "$root" /usr/bin/env -i --chdir="$folder" "$@"
"""
"""What a container runtime does: own mounts, own processes, read-only root, a tmpfs, volumes, no new privileges, the image's user."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image, ready to run.

    Attributes:
        config: what the image says of itself, in Docker's words (``User``, ``Entrypoint``, ``Env``, ...).
        tree: its files.
    """

    config: Mapping[str, Any]
    tree: Path

    def command(self, arguments: Sequence[str], volumes: Mapping[str, Path], environment: Mapping[str, str]) -> list[str]:
        """Return the command that runs *arguments* as a container.

        Args:
            arguments: the program and its arguments; none: what the image runs by itself.
            volumes: folders of ours by where they are mounted.
            environment: variables beside the image's own.
        """
        words = arguments or [*self.config["Entrypoint"], *self.config["Cmd"]]
        variables = [*self.config["Env"], *(f"{name}={value}" for name, value in environment.items())]
        mounts = [word for place, folder in volumes.items() for word in (place, str(folder))]
        unshare = [need("unshare", REMEDY), "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ISOLATE, "sh"]
        return [*unshare, str(self.tree), self.config["User"], self.config["WorkingDir"], *mounts, "--", *variables, *words]
