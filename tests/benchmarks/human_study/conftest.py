"""A made-up pool of images, and a server in its own process."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "benchmarks" / "human_study" / "page"
SIZE = (72, 60)
LEVELS = (1, 2, 4, 8)
STUDY = """
title = "A study"
consent = "I am of age.\\nI can see.\\n\\nI take part of my own will."
contact = "lab@example.org"
completion_link = "https://example.org/complete?cc=C0DE"
scale = 1
"""


def make_stimuli(folder, classes=10):
    """A manifest and its files: random images, and what noise of each level makes of them."""
    random = np.random.default_rng(0)

    def save(name, pixels):
        path = folder / "png" / f"{name}.png"
        Image.fromarray(pixels).save(path, compress_level=0)
        return {"file": f"png/{name}.png", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}

    def noisy(pixels, level):
        return (pixels + random.integers(-level, level + 1, pixels.shape)).astype(np.uint8)

    (folder / "png").mkdir(parents=True)
    images, examples = [], {}
    for k in range(classes):
        clean = random.integers(8, 248, (*SIZE[::-1], 3)).astype(np.uint8)
        versions = {
            name: {str(n): save(f"{k}-{name}-{n}", noisy(clean, n)) | {"norm": n / 255, "fooled": True} for n in LEVELS}
            for name in ("a", "b")
        }
        image = {"id": f"{k:03}-0000", "class": k, "name": str(k), "clean": save(f"{k}-clean", clean)}
        images.append(image | {"versions": versions})
    for name in ("a", "b"):
        pixels = random.integers(8, 248, (*SIZE[::-1], 3)).astype(np.uint8)
        files = [save(f"example-{name}-{n}", noisy(pixels, n))["file"] for n in (0, 8, 1)]
        examples[name] = {"strong": files[:2], "weak": files[::2]}
    manifest = {"levels": [0, *LEVELS], "size": SIZE, "versions": ["a", "b"], "images": images, "examples": examples}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


class Server:
    """`serve` in a process of its own, that can be killed and started again."""

    def __init__(self, stimuli, data, *options):
        self._arguments = ["--stimuli", str(stimuli), "--data", str(data), *options]
        self.data, self.port = data, 0
        self.start()

    def start(self):
        command = [sys.executable, "-m", "benchmarks.human_study", "serve", *self._arguments, "--port", str(self.port)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.data.parent, env=environment
        )
        said = self._process.stdout.readline()
        if "http://" not in said:
            raise RuntimeError(said + self._process.communicate()[1])
        self.url = said.partition("http://")[2].split("/")[0]
        self.port = int(self.url.rpartition(":")[2])
        self.url = f"http://{self.url}"

    def kill(self):
        """End it at once; what it wrote to the standard error."""
        self._process.kill()
        return self._process.communicate()[1]


@pytest.fixture(scope="session")
def stimuli(tmp_path_factory):
    return make_stimuli(tmp_path_factory.mktemp("study") / "stimuli")


@pytest.fixture
def serve(stimuli, tmp_path):
    """Starts servers; the test fails if one of them wrote to the standard error."""
    if not (PAGE / "node_modules" / "jspsych").exists():
        pytest.skip(f"jsPsych is missing: run `npm ci` in {PAGE.relative_to(ROOT)}")
    servers = []

    def start(*options, study=STUDY):
        (tmp_path / "study.toml").write_text(study, encoding="utf-8")
        servers.append(Server(stimuli, tmp_path / "data", "--study", str(tmp_path / "study.toml"), *options))
        return servers[-1]

    yield start
    for server in servers:
        assert server.kill() == ""
