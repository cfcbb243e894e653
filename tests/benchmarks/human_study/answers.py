"""A server's file with answers of known rates."""

import json
import sqlite3

import numpy as np
from scipy.stats import beta

from benchmarks.human_study.assignment import assign

LEVELS = [0, 1, 2, 4, 8]
RATES = (0.12, 0.2, 0.4, 0.65, 0.85)
TABLES = """
CREATE TABLE participants(id TEXT PRIMARY KEY, number INTEGER UNIQUE, version TEXT, started TEXT, finished TEXT NULL,
    browser TEXT, simulated INTEGER);
CREATE TABLE answers(participant TEXT, trial INTEGER, image TEXT, class INTEGER, level REAL, perturbed INTEGER,
    reaction_ms REAL, received TEXT, simulated INTEGER, PRIMARY KEY (participant, trial));
CREATE TABLE study(key TEXT PRIMARY KEY, value TEXT);
"""


def pool(classes, each=5, versions=("resnet50", "densenet121")):
    """A manifest, as far as an assignment needs it."""
    images = [{"id": f"{c:03}-{i:04}", "class": c} for c in range(classes) for i in range(each)]
    return {"levels": LEVELS, "versions": list(versions), "images": images}


def write_answers(path, people=40, *, rates=RATES, simulated=1, versions=("resnet50", "densenet121"), careless=()):
    """``study.sqlite``; ``careless`` are the kinds of further participants: "unfinished", "fast", "constant"."""
    manifest, random = pool(20, versions=versions), np.random.default_rng(0)
    connection = sqlite3.connect(path)
    connection.executescript(TABLES)
    connection.execute("INSERT INTO study VALUES ('seed', '0')")
    for number, kind in enumerate([*[""] * people, *careless]):
        assignment, ease = assign(manifest, 0, number), random.random()
        name, finished = f"{number:08x}", None if kind == "unfinished" else "2026-01-01T01:00:00"
        browser = json.dumps({"width": 1280, "height": 800, "pixel_ratio": 1})
        row = (name, number, assignment.version, "2026-01-01T00:00:00", finished, browser, simulated)
        connection.execute("INSERT INTO participants VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        for place, trial in enumerate(assignment.trials[: 20 if kind == "unfinished" else 50]):
            rate = rates[LEVELS.index(trial.level)]
            said = int(kind != "constant" and random.random() < beta.ppf(ease, 6 * rate, 6 * (1 - rate)))
            ms = random.uniform(100, 250) if kind == "fast" else random.uniform(400, 3000)
            row = (name, place, trial.image, int(trial.image[:3]), trial.level, said, ms, "2026-01-01", simulated)
            connection.execute("INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    connection.commit()
    connection.close()
