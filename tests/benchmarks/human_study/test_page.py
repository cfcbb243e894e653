"""A headless Chromium goes through the study."""

import json
import os
import shutil
import sqlite3
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.benchmarks.human_study.conftest import PAGE, STUDY, Server

pytestmark = pytest.mark.xdist_group("chromium")  # it goes through the study once for all tests
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def seen(stimuli, tmp_path_factory):
    if CHROMIUM is None or shutil.which("node") is None:
        pytest.skip("needs Chromium and Node.js")
    if not (PAGE / "node_modules" / "playwright-core").exists():
        pytest.skip(f"needs playwright-core: run `npm ci` in {PAGE}")
    folder = tmp_path_factory.mktemp("browser")
    out = Path(os.environ.get("STUDY_SCREENSHOTS", folder / "screenshots"))
    out.mkdir(parents=True, exist_ok=True)
    (folder / "study.toml").write_text(STUDY, encoding="utf-8")
    study = Server(stimuli, folder / "data", "--study", str(folder / "study.toml"))
    preview = Server(stimuli, folder / "preview", "--preview")
    settings = {"page": str(PAGE), "chromium": CHROMIUM, "out": str(out), "study": study.url, "preview": preview.url}
    try:
        command = ["node", str(Path(__file__).with_name("browser.mjs")), json.dumps(settings)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
    finally:
        said = study.kill() + preview.kill()
    assert said == ""
    found = json.loads(result.stdout)
    with sqlite3.connect(folder / "data" / "study.sqlite") as data:
        found["participants"] = data.execute(
            "SELECT started, finished, browser, participants.simulated, recruitment, COUNT(trial) FROM participants "
            "LEFT JOIN answers ON participant = id GROUP BY id ORDER BY COUNT(trial) DESC"
        ).fetchall()
        found["rows"] = data.execute(
            "SELECT trial, perturbed, reaction_ms, image, level FROM answers WHERE participant = "
            "(SELECT id FROM participants WHERE finished IS NOT NULL) ORDER BY trial"
        ).fetchall()
    with sqlite3.connect(folder / "preview" / "study.sqlite") as data:
        found["codes"] = data.execute("SELECT id FROM participants").fetchall()
    return found | {"out": out, "hosts": set(found["hosts"]), "urls": {study.url[7:], preview.url[7:]}}


def test_nothing_went_wrong(seen):
    assert seen["errors"] == []


def test_the_browser_talks_to_nobody_else(seen):
    assert seen["hosts"] <= seen["urls"] | {""}  # "": the data: addresses


def test_no_axe_violation(seen):
    assert seen["violations"] == []


def test_consent_to_thanks(seen):
    assert "I am of age.\nI can see.\n\nI take part" in seen["consent"]
    assert seen["headings"] == ["Perturbed images", "Your task", "A weak perturbation"]
    assert [bool(perturbed) for _, perturbed, *_ in seen["rows"]] == seen["answers"]
    assert [trial for trial, *_ in seen["rows"]] == list(range(50))
    assert all(0 < reaction < 60_000 for _, _, reaction, *_ in seen["rows"])
    assert len({(image, level) for *_, image, level in seen["rows"]}) == 50
    assert seen["link"] == "https://example.org/complete?cc=C0DE"
    started, finished, browser, simulated, recruitment, _ = seen["participants"][0]
    assert started < finished
    assert json.loads(browser) == {"width": 1280, "height": 800, "pixel_ratio": 1}
    assert simulated == 0
    assert set(json.loads(recruitment)) == {"PROLIFIC_PID", "STUDY_ID", "SESSION_ID"}
    assert "whole" not in recruitment


def test_refusals_leave_nothing(seen):
    assert seen["phone"] == seen["phoneOnItsSide"] == "This window is too small"
    # whole, images, lost and three for the pixels: not the phone, the stranger, or who did not agree
    assert [row[-1] for row in seen["participants"]] == [50, 2, 0, 0, 0, 0]


def test_a_lost_reply_counts_once(seen):
    assert seen["sent"] == 2


def test_preview(seen):
    assert seen["banner"].startswith("Preview")
    assert seen["unanswered"]
    assert seen["announced"] == "Image 2 of 50: is it perturbed?"
    assert seen["questionFirst"]


def test_open_recruitment_stores_nothing_before_consent_and_shows_a_withdrawal_code(seen):
    assert seen["storedBeforeConsent"] == 0
    assert seen["codes"] == [(seen["code"],)]


@pytest.mark.parametrize(("ratio", "multiple"), [(1, 1), (1.25, 1), (1.5, 2)])
def test_each_pixel_is_shown_as_it_is(seen, stimuli, ratio, multiple):
    shot = seen["shots"][f"pixels-{ratio}.png"]
    manifest = json.loads((stimuli / "manifest.json").read_text(encoding="utf-8"))
    files = [image["clean"] for image in manifest["images"]]
    files += [shown for image in manifest["images"] for v in image["versions"].values() for shown in v.values()]
    (file,) = (entry["file"] for entry in files if entry["sha256"] == shot["source"])
    image = np.asarray(Image.open(stimuli / file)).repeat(multiple, 0).repeat(multiple, 1)
    left, top = (round(shot["box"][axis] * ratio) for axis in ("x", "y"))
    screen = np.asarray(Image.open(seen["out"] / f"pixels-{ratio}.png").convert("RGB"))
    np.testing.assert_array_equal(screen[top : top + image.shape[0], left : left + image.shape[1]], image)
