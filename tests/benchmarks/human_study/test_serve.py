"""What the server stores, what it refuses, and what it keeps when it is killed."""

import hashlib
import json
import random
import shutil
import socket
import sqlite3
import threading
import time
from collections import Counter

import httpx
import pytest
from PIL import Image

from benchmarks.human_study.assignment import assign
from benchmarks.human_study.serve import Stimuli, Study
from benchmarks.human_study.settings import Settings, read_settings
from benchmarks.human_study.simulate import Client, levels_of, simulate, take_part
from tests.benchmarks.human_study.conftest import SIZE, STUDY, make_stimuli

HTTP = httpx.Client()
BROWSER = {"width": 1280, "height": 800, "pixel_ratio": 1.25}


def rows(server, query):
    with sqlite3.connect(f"file:{server.data / 'study.sqlite'}?mode=ro", uri=True) as data:
        return data.execute(query).fetchall()


def start(server, name="5f3cparticipant", **changes):
    message = {"ids": {"PROLIFIC_PID": name}, "consent": True, "browser": BROWSER, "simulated": False} | changes
    return HTTP.post(f"{server.url}/start", json=message)


def answer(server, me, trial, **changes):
    message = {"participant": me["participant"], "trial": trial, "image": me["images"][trial], "perturbed": True}
    return HTTP.post(f"{server.url}/answer", json=message | {"reaction_ms": 812.0} | changes)


def test_a_participant(serve, stimuli):
    server = serve()
    assert start(server, consent=False).json() == {"started": False}
    assert rows(server, "SELECT * FROM participants") == []
    me = start(server).json()
    other = start(server, "p2").json()
    manifest = json.loads((stimuli / "manifest.json").read_text(encoding="utf-8"))
    levels = levels_of(manifest)
    assigned = assign(manifest, 0, 0)
    assert [levels[image] for image in me["images"]] == [trial.level for trial in assigned.trials]
    told = set()
    for image in [*me["images"], *me["examples"]["strong"], *me["examples"]["weak"]]:
        reply = HTTP.get(f"{server.url}/images/{image}.png")
        assert hashlib.sha256(reply.content).hexdigest() == image
        kept = {name: value for name, value in reply.headers.items() if name not in ("date", "etag")}
        told.add(tuple(sorted(kept.items())))
        assert reply.headers["etag"] == f'"{image}"'
    ((*headers,),) = told  # nothing but the address tells the images apart
    assert "last-modified" not in dict(headers)
    for trial in range(50):
        assert start(server).json() == me | {"done": trial}  # a reload changes nothing
        if trial < 49:
            assert answer(server, other, trial).json() == {"completion_link": None}
        reply = answer(server, me, trial, perturbed=trial % 2 == 0)
        assert answer(server, me, trial, perturbed=trial % 2 == 0).json() == reply.json()  # sent again: counts once
        assert answer(server, me, trial, perturbed=trial % 2 == 1).status_code == 409  # the first one counts
    assert reply.json() == {"completion_link": "https://example.org/complete?cc=C0DE"}
    finished = start(server).json()
    assert (finished["done"], finished["completion_link"]) == (50, "https://example.org/complete?cc=C0DE")
    stored = rows(server, "SELECT trial, image, class, level, perturbed, reaction_ms FROM answers WHERE participant = "
                          "(SELECT id FROM participants WHERE number = 0) ORDER BY trial")  # fmt: skip
    assert stored == [
        (k, trial.image, int(trial.image[:3]), trial.level, int(k % 2 == 0), 812.0)
        for k, trial in enumerate(assigned.trials)
    ]
    assert rows(server, "SELECT number, version, finished IS NULL, simulated FROM participants ORDER BY number") == [
        (0, assign(manifest, 0, 0).version, 0, 0),
        (1, assign(manifest, 0, 1).version, 1, 0),
    ]
    everything = b"".join(path.read_bytes() for path in server.data.iterdir())
    assert b"5f3cparticipant" not in everything
    assert b"127.0.0.1" not in everything


def test_ids_as_they_are_on_request(serve):
    server = serve(study=STUDY + 'ids = "plain"')
    start(server, ids={"PROLIFIC_PID": "5f3c", "STUDY_ID": "s", "SESSION_ID": "t"})
    ((recruitment,),) = rows(server, "SELECT recruitment FROM participants")
    assert json.loads(recruitment) == {"PROLIFIC_PID": "5f3c", "STUDY_ID": "s", "SESSION_ID": "t"}


def test_deletion_on_request(serve, tmp_path, capsys):
    from benchmarks.human_study.__main__ import main

    server = serve()
    me = start(server).json()
    answer(server, me, 0)
    answer(server, start(server, "p2").json(), 0)
    arguments = ["--data", str(server.data)]
    assert main(["serve", *arguments, "--delete", "5f3cparticipant"]) == 0
    assert rows(server, "SELECT number, COUNT(*) FROM participants JOIN answers ON participant = id") == [(1, 1)]
    assert me["participant"][:32].encode() not in b"".join(path.read_bytes() for path in server.data.iterdir())
    assert answer(server, me, 1).status_code == 403
    assert main(["serve", *arguments, "--delete", "5f3cparticipant"]) == 1
    other = start(server, "p2").json()["participant"][:32]  # a withdrawal code, in studies without Prolific
    assert main(["serve", *arguments, "--delete", other]) == 0
    assert rows(server, "SELECT * FROM participants") == []
    assert capsys.readouterr().out == "Deleted.\nThere is no such participant.\nDeleted.\n"
    with pytest.raises(SystemExit):
        main(["serve", *arguments, "--data", str(tmp_path / "mistyped"), "--delete", other])
    assert "There is no study in" in capsys.readouterr().err
    assert not (tmp_path / "mistyped").exists()


def malformed(me, other):
    """About two hundred requests, as (method, path, headers, body)."""
    fine = {"participant": me["participant"], "trial": 0, "image": me["images"][0], "perturbed": True, "reaction_ms": 5}
    new = {"ids": {"PROLIFIC_PID": "new"}, "consent": True, "browser": BROWSER, "simulated": False}
    odd = [None, True, "", "x", "\ud800", "0", -1, 50, 10**400, 0.5, float("nan"), float("inf"), [], [0], {}, {"a": 1}]
    bodies = [b"", b"{", b"null", b"[]", b"1", b'"a"', b"\xff\xfe", b"{}", b"[" * 4000, b'{"a":' * 700, b" " * 5000]
    bodies += [b"9" * 4000, json.dumps(fine).encode() + b"x", json.dumps(fine | {"more": "x" * 100_000}).encode()]
    for name in fine:
        bodies.append(json.dumps({key: value for key, value in fine.items() if key != name}).encode())
        acceptable = {"trial": (), "perturbed": (True,), "reaction_ms": (50, 0.5)}.get(name, ())
        bodies += [
            json.dumps(fine | {name: value}).encode() for value in odd if value not in acceptable or value is None
        ]
    bodies += [json.dumps(fine | change).encode() for change in (
        {"image": other["images"][0]}, {"participant": other["participant"]}, {"trial": 1}, {"level": 0},
        {"trial": 1, "image": me["images"][1]}, {"trial": 49, "image": me["images"][49]}, {"reaction_ms": 10**9},
        {"participant": me["participant"][:32] + other["participant"][32:]}, {"participant": "é" * 65},
        {"participant": "0" * 32 + "-" + "0" * 32}, {"participant": "' OR 1 = 1 --"}, {"image": "../manifest.json"},
    )]  # fmt: skip
    yield from (("POST", "/answer", {}, body) for body in bodies)
    for name in new:
        yield "POST", "/start", {}, json.dumps({key: value for key, value in new.items() if key != name}).encode()
        fits = {"consent": (True, None), "simulated": (True, None)}.get(name, ())
        yield from (
            ("POST", "/start", {}, json.dumps(new | {name: value}).encode()) for value in odd if value not in fits
        )
    for pid in ("a b", "a" * 65, 1, "a\n", "../a", "é"):
        yield "POST", "/start", {}, json.dumps(new | {"ids": {"PROLIFIC_PID": pid}}).encode()
    for ids in ({"STUDY_ID": "a"}, {"BROWSER_ID": "a"}, {"PROLIFIC_PID": "a", "x": "y"}):
        yield "POST", "/start", {}, json.dumps(new | {"ids": ids}).encode()
    for name in BROWSER:
        sizes = [BROWSER | {name: value} for value in odd if value not in (50, 0.5) or isinstance(value, bool)]
        yield from (("POST", "/start", {}, json.dumps(new | {"browser": size}).encode()) for size in sizes)
    yield "POST", "/start", {}, json.dumps(new | {"simulated": True}).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=a", ""):
        yield "POST", "/answer", {"Content-Type": kind}, json.dumps(fine).encode()
    for path in ("/../serve.py", "/..%2fserve.py", "/images/..%2f..%2fmanifest.json.png", "/images/%00.png", "/%00",
                 "/images/" + "0" * 64 + ".png", "/images/", "/study.sqlite", "/node_modules/jspsych/package.json",
                 "/manifest.json", "/images/" + "a" * 9000, "//etc/passwd", "/images/..\\..\\x.png"):  # fmt: skip
        yield "GET", path, {}, b""
    for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS"):
        yield from ((method, path, {}, json.dumps(fine).encode()) for path in ("/answer", "/start"))


def test_malformed_requests_leave_nothing(serve):
    server = serve()
    me, other = start(server).json(), start(server, "p2").json()
    everything = "SELECT * FROM participants", "SELECT * FROM answers", "SELECT * FROM study"
    before = [rows(server, query) for query in everything]
    requests = list(malformed(me, other))
    assert len(requests) >= 200
    replies = Counter()
    with httpx.Client(base_url=server.url) as client:
        for method, path, headers, body in requests:
            url = client.base_url.copy_with(raw_path=path.encode())
            reply = client.request(method, url, headers={"Content-Type": "application/json"} | headers, content=body)
            replies[reply.status_code] += 1
            assert 400 <= reply.status_code < 500, (method, path, body[:200], reply.text)
    address = ("127.0.0.1", server.port)
    for raw in (b"\x00\xff\r\n\r\n", b"POST /answer HTTP/1.1\r\nContent-Length: -5\r\n\r\n"):
        with socket.create_connection(address, timeout=5) as connection:
            connection.sendall(raw)
            assert b" 400 " in connection.recv(100)
    with socket.create_connection(address, timeout=5) as connection:  # gone in the middle of an answer
        head = "POST /answer HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
        connection.sendall(head.encode())
    assert [rows(server, query) for query in everything] == before
    assert set(replies) == {400, 403, 404, 405, 409, 413, 415}
    assert answer(server, me, 0).status_code == 200  # it still works


def test_kill_minus_nine_loses_nothing(serve, stimuli):
    server = serve("--preview")
    manifest = json.loads((stimuli / "manifest.json").read_text(encoding="utf-8"))
    levels = levels_of(manifest)
    rates = {0: 0.2, 1: 0.3, 2: 0.4, 4: 0.6, 8: 0.9}
    acknowledged, images, failures = {}, {}, []

    class Watched(Client):
        def post(self, path, message):
            reply = super().post(path, message)
            if path == "answer":
                acknowledged[message["participant"], message["trial"]] = (message["perturbed"], message["reaction_ms"])
            else:
                images.setdefault(self.name, set()).add((reply["participant"], *reply["images"]))
            return reply

    def person(k):
        try:
            client = Watched(http, f"person{k}")
            client.name = k
            take_part(client, levels, rates, random.Random(k), "stops")  # the window is closed
            take_part(client, levels, rates, random.Random(-k), "")  # and opened again
        except Exception as error:
            failures.append(error)

    http = httpx.Client(base_url=server.url, timeout=10)
    threads = [threading.Thread(target=person, args=(k,)) for k in range(50)]
    for thread in threads:
        thread.start()
    for kill in range(5):
        while len(acknowledged) < (kill + 1) * 400 and not failures:
            time.sleep(0.005)
        server.kill()
        server.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(acknowledged) == 50 * 50
    stored = rows(server, "SELECT participant, trial, perturbed, reaction_ms FROM answers")
    assert len(stored) == 50 * 50
    assert {(id_, k): (bool(p), ms) for id_, k, p, ms in stored} == {
        (token[:32], k): given for (token, k), given in acknowledged.items()
    }
    assert all(len(assignments) == 1 for assignments in images.values())
    assert len({token for ((token, *_),) in images.values()}) == 50
    people = rows(server, "SELECT id, number, finished IS NULL, simulated FROM participants ORDER BY number")
    assert [(number, *rest) for _, number, *rest in people] == [(k, 0, 1) for k in range(50)]
    for (token, *shown), (id_, number, *_) in zip(
        sorted(one for (one,) in images.values()), sorted(people), strict=True
    ):
        assigned = assign(manifest, 0, number)
        assert token.startswith(id_)
        assert [levels[image] for image in shown] == [trial.level for trial in assigned.trials]
    assert rows(server, "SELECT DISTINCT simulated FROM answers") == [(1,)]


def test_simulated_rates_and_careless_participants(serve, stimuli):
    server = serve("--preview")
    manifest = json.loads((stimuli / "manifest.json").read_text(encoding="utf-8"))
    stored = simulate(server.url, manifest, (0, 0.25, 0.5, 0.75, 1), participants=12, careless=0, seed=1)
    assert stored == 12 * 50
    shares = dict(rows(server, "SELECT level, AVG(perturbed) FROM answers GROUP BY level"))
    assert (shares[0], shares[8]) == (0, 1)
    assert 0 < shares[1] < shares[4] < 1
    assert simulate(server.url, manifest, (0, 0, 1, 1, 1), participants=12, careless=1, seed=2) < 12 * 50
    careless = rows(server, "SELECT COUNT(*), AVG(perturbed), MAX(reaction_ms) < 300 FROM answers JOIN participants "
                            "ON participant = id WHERE number >= 12 GROUP BY id")  # fmt: skip
    kinds = {"stops" if n == 25 else "fast" if fast else "same" for n, _, fast in careless}
    assert kinds == {"stops", "fast", "same"}
    assert all(share in (0, 1) for n, share, fast in careless if n == 50 and not fast)
    with pytest.raises(ValueError, match="a rate for each of the levels"):
        simulate(server.url, manifest, (0, 1), participants=1, careless=0, seed=1)


def test_a_study_lets_no_simulated_participant_in(serve, stimuli):
    server = serve()
    manifest = json.loads((stimuli / "manifest.json").read_text(encoding="utf-8"))
    with pytest.raises(ValueError, match="only let into a preview"):
        simulate(server.url, manifest, (0, 0, 0, 0, 0), participants=1, careless=0, seed=0)
    assert rows(server, "SELECT * FROM participants") == []


def test_what_cannot_be_served(stimuli, tmp_path):
    settings, images = Settings(consent="Yes?", contact="lab@example.org"), Stimuli(stimuli)
    with pytest.raises(ValueError, match="no consent text"):
        Study(Settings(), images, tmp_path / "data", preview=False)
    assert not (tmp_path / "data").exists()
    Study(settings, images, tmp_path / "data", preview=False)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "data").iterdir()}
    assert set(modes.values()) == {0o600}, modes
    for changed, preview, said in (
        (
            Settings(consent="Yes?", contact="a", seed=1),
            False,
            r"differs in seed \(0 there, 1 here\): choose another folder",
        ),
        (settings, True, r"differs in preview \(0 there, 1 here\)"),
    ):
        with pytest.raises(ValueError, match=said):
            Study(changed, images, tmp_path / "data", preview=preview)
    shutil.copytree(stimuli, tmp_path / "again")
    file = tmp_path / "again" / "manifest.json"
    manifest = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps({"command": "another", "commit": "another"} | manifest))  # the same images
    Study(settings, Stimuli(tmp_path / "again"), tmp_path / "data", preview=False)
    manifest["images"][0]["class"], manifest["versions"] = 99, ["b", "a"]
    file.write_text(json.dumps(manifest))
    with pytest.raises(
        ValueError, match=r'differs in versions \(\["a", "b"\] there, \["b", "a"\] here\), images: choose'
    ):
        Study(settings, Stimuli(tmp_path / "again"), tmp_path / "data", preview=False)
    study = Study(settings, images, tmp_path / "data", preview=False)
    study.store.add("p", lambda number: "a", browser={}, recruitment={}, consent_sha256="", simulated=False)
    for key in ("", "00", "z" * 64):
        (tmp_path / "data" / "study.key").write_text(key)
        with pytest.raises(ValueError, match="is not a key"):
            Study(settings, images, tmp_path / "data", preview=False)
    (tmp_path / "data" / "study.key").unlink()
    with pytest.raises(ValueError, match="is gone: without it nobody in"):
        Study(settings, images, tmp_path / "data", preview=False)


def test_stimuli_must_be_those_of_the_manifest(tmp_path):
    folder = make_stimuli(tmp_path / "stimuli")
    path = folder / "png" / "3-b-4.png"
    path.write_bytes((folder / "png" / "3-b-8.png").read_bytes())
    with pytest.raises(ValueError, match=r"3-b-4\.png is not the image in the manifest"):
        Stimuli(folder)
    path.unlink()
    path.symlink_to(__file__)
    with pytest.raises(ValueError, match="lies outside"):
        Stimuli(folder)


@pytest.mark.parametrize("change", [{"images": [{}]}, {"images": None}, {"examples": {}}, {"levels": [0, 3]}, None])
def test_a_broken_manifest_gives_a_sentence(stimuli, tmp_path, change):
    shutil.copytree(stimuli, tmp_path / "stimuli")
    path = tmp_path / "stimuli" / "manifest.json"
    text = path.read_text("utf-8")
    path.write_text(json.dumps(json.loads(text) | change) if change else text[:-9])
    with pytest.raises(ValueError, match=r"manifest\.json is not a whole manifest"):
        Stimuli(tmp_path / "stimuli")


def test_examples_must_be_those_of_the_manifest(tmp_path):
    folder = make_stimuli(tmp_path / "stimuli")
    path, manifest = folder / "png" / "example-a-8.png", json.loads((folder / "manifest.json").read_text("utf-8"))
    (folder / "manifest.json").write_text(json.dumps(manifest | {"examples_sha256": {"png/example-a-8.png": "0"}}))
    with pytest.raises(ValueError, match=r"example-a-8\.png is not the image in the manifest"):
        Stimuli(folder)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    Stimuli(folder)
    Image.new("RGB", SIZE).save(path)  # compressed
    with pytest.raises(ValueError, match=r"different lengths.*make them again"):
        Stimuli(folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="example-a-8"):
        Stimuli(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('consnet = "a"', "unknown keys: consnet"),
        ('consent = "a"', "needs a contact"),
        ('seed = "a"', "seed must be of type int"),
        ("scale = -1", "must not be negative"),
        ('ids = "raw"', "ids must be one of"),
        ('completion_link = "javascript:alert(1)"', "begins with https"),
        ("title = ", "Invalid value"),
    ],
)
def test_settings_say_what_is_wrong(tmp_path, text, message):
    (tmp_path / "study.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"study\.toml: .*{message}"):
        read_settings(tmp_path / "study.toml")
