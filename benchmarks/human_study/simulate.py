"""Participants that are programs: they go through the server's real HTTP interface.

    python -m benchmarks.human_study simulate --url http://127.0.0.1:8000 --stimuli out/stimuli --participants 50

They say "perturbed" at given rates for each level. Some are careless: they stop halfway, always say the same, or answer at
random at once. Only a server with ``--preview`` lets them in, and every row of theirs is marked as simulated.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import httpx

from benchmarks.human_study.serve import Stimuli

RATES = (0.2, 0.3, 0.4, 0.6, 0.85)
"""Of "perturbed" at ε = 0, 1, 2, 4, 8; made up, roughly as in the paper's figure 5."""


class Client:
    """One participant's requests. Each is sent until there is a reply, as the page does.

    Args:
        http: Whose base URL is the server's.
        participant: In place of Prolific's id.
        patience: Seconds after which a server that does not reply is given up.
    """

    def __init__(self, http: httpx.Client, participant: str, *, patience: float = 60) -> None:
        self._http, self._participant, self._patience = http, participant, patience

    def start(self) -> dict[str, Any]:
        """Consent; where the participant stands."""
        browser = {"width": 1280, "height": 800, "pixel_ratio": 1}
        ids = {"PROLIFIC_PID": self._participant}
        return self.post("start", {"ids": ids, "consent": True, "browser": browser, "simulated": True})

    def post(self, path: str, message: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to a message.

        Raises:
            ValueError: If the server refuses it.
            ConnectionError: If there is no reply for too long.
        """
        until = time.monotonic() + self._patience
        while True:
            try:
                reply = self._http.post(path, json=message)
                if reply.status_code < 500:
                    break
            except httpx.TransportError:
                pass
            if time.monotonic() > until:
                raise ConnectionError(f"The server has not replied for {self._patience:g} s.")
            time.sleep(0.1)
        if reply.is_error:
            raise ValueError(f"The server refused: {reply.text}")
        content: dict[str, Any] = reply.json()
        return content


def take_part(
    client: Client, levels: Mapping[str, float], rates: Mapping[float, float], random: Random, careless: str
) -> int:
    """Answer what is left for a participant; how many answers the server acknowledged.

    Args:
        client: The participant's.
        levels: Of each image, by the SHA-256 of its file: the server does not tell them.
        rates: Of "perturbed" at each level.
        random: Draws the answers and the reaction times.
        careless: "", "stops", "same" or "fast".
    """
    me = client.start()
    trials = range(me["done"], len(me["images"]))
    if careless == "stops":
        trials = trials[: len(trials) // 2]
    same = random.random() < 0.5
    for trial in trials:
        image = me["images"][trial]
        perturbed = random.random() < (0.5 if careless == "fast" else rates[levels[image]])
        reaction = random.uniform(80, 250) if careless == "fast" else random.lognormvariate(math.log(1500), 0.4)
        answer = {"trial": trial, "image": image, "perturbed": same if careless == "same" else perturbed}
        client.post("answer", {"participant": me["participant"], "reaction_ms": round(reaction), **answer})
    return len(trials)


def levels_of(manifest: Mapping[str, Any]) -> dict[str, float]:
    """The level of each file, by its SHA-256; a file that several levels share has the lowest."""
    found: dict[str, float] = {image["clean"]["sha256"]: 0.0 for image in manifest["images"]}
    for level in sorted(level for level in manifest["levels"] if level):
        for image in manifest["images"]:
            for version in image["versions"].values():
                found.setdefault(version[f"{level:g}"]["sha256"], float(level))
    return found


def simulate(
    url: str, manifest: Mapping[str, Any], rates: Sequence[float], *, participants: int, careless: float, seed: int
) -> int:
    """So many participants at a server, sixteen at a time; how many answers it acknowledged.

    Raises:
        ValueError: If there is not one rate for each level, or the server refuses.
    """
    if len(rates) != len(manifest["levels"]):
        raise ValueError(f"There must be a rate for each of the levels {manifest['levels']}, got {len(rates)}.")
    by_level = {float(level): rate for level, rate in zip(manifest["levels"], rates, strict=True)}
    levels = levels_of(manifest)

    def one(k: int) -> int:
        random = Random(f"{seed}/{k}")
        kind = random.choice(("stops", "same", "fast")) if random.random() < careless else ""
        return take_part(Client(http, f"simulated-{seed}-{k}"), levels, by_level, random, kind)

    with httpx.Client(base_url=url, timeout=10) as http, ThreadPoolExecutor(16) as pool:
        return sum(pool.map(one, range(participants)))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of ``simulate``."""
    parser.add_argument("--url", required=True, help="of a server with --preview")
    parser.add_argument("--stimuli", type=Path, required=True, help="the server's")
    parser.add_argument("--participants", type=int, default=50)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help='of "perturbed", one for each level')
    parser.add_argument("--careless", type=float, default=0.1, help="share of careless participants")
    parser.add_argument("--seed", type=int, default=0)


def run(options: argparse.Namespace) -> int:
    """Simulate; the exit status."""
    manifest = Stimuli(options.stimuli).manifest
    stored = simulate(
        options.url,
        manifest,
        options.rates,
        participants=options.participants,
        careless=options.careless,
        seed=options.seed,
    )
    print(f"{options.participants} simulated participants gave {stored} answers.")
    return 0
