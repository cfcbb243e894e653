"""What a study keeps: participants and answers in one SQLite file, and the key of the hashes in another."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

_TABLES = """
CREATE TABLE IF NOT EXISTS study (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS participants (
    id TEXT PRIMARY KEY, number INTEGER NOT NULL UNIQUE, version TEXT NOT NULL, started TEXT NOT NULL, finished TEXT,
    browser TEXT NOT NULL, simulated INTEGER NOT NULL, recruitment TEXT NOT NULL, consent_sha256 TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS answers (
    participant TEXT NOT NULL REFERENCES participants (id), trial INTEGER NOT NULL, image TEXT NOT NULL,
    class INTEGER NOT NULL, level REAL NOT NULL, perturbed INTEGER NOT NULL, reaction_ms REAL NOT NULL,
    received TEXT NOT NULL, simulated INTEGER NOT NULL, PRIMARY KEY (participant, trial));
"""


class ConflictError(Exception):
    """A request that contradicts what is stored."""


class Store:
    """``study.sqlite`` and ``study.key`` in a folder.

    The key makes the hashes: anyone who has it can tell whether a given Prolific id took part. Delete it once all are paid.

    Args:
        folder: Made if it is not there.
        conditions: Kept in the table ``study`` (seed, preview, stimuli); the same folder takes no others later.

    Raises:
        ValueError: If the folder holds a study under other conditions, or the key of its participants is gone or broken.
    """

    def __init__(self, folder: Path, conditions: Mapping[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder / "study.sqlite").touch(mode=0o600)  # SQLite gives its other files the same mode
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(
            folder / "study.sqlite", timeout=30, isolation_level=None, check_same_thread=False
        )
        self._connection.row_factory = sqlite3.Row
        # FULL: an answer is on the disk before it is acknowledged, even if the power fails.
        self._connection.executescript(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA secure_delete = ON;" + _TABLES
        )
        with self._transaction() as do:
            for key, value in conditions.items():
                do("INSERT OR IGNORE INTO study VALUES (?, ?)", (key, value))
            there = {row["key"]: row["value"] for row in do("SELECT * FROM study")}
            anybody = do("SELECT COUNT(*) FROM participants").fetchone()[0]
        differ = [
            key if len(value) == 64 else f"{key} ({there[key]} there, {value} here)"  # nobody reads a hash
            for key, value in conditions.items()
            if there[key] != value
        ]
        if differ:
            raise ValueError(f"{folder} holds a study that differs in {', '.join(differ)}: choose another folder.")
        key_file = folder / "study.key"
        if not key_file.exists():
            if anybody:
                raise ValueError(f"{key_file} is gone: without it nobody in {folder} is known again.")
            _write_secret(key_file)
        secret = key_file.read_bytes().strip()
        if not re.fullmatch(b"[0-9a-f]{64}", secret):
            raise ValueError(f"{key_file} is not a key: put back the one that the study began with.")
        self._key = bytes.fromhex(secret.decode())

    def hashed(self, kind: str, text: str) -> str:
        """A hash of ``text`` that says nothing without the key, and is another one for each ``kind``."""
        return hmac.new(self._key, f"{kind}:{text}".encode(), hashlib.sha256).hexdigest()[:32]

    def token(self, participant: str) -> str:
        """What a participant's requests are known by."""
        return f"{participant}-{self.hashed('token', participant)}"

    def known(self, token: str) -> sqlite3.Row | None:
        """The participant of a token."""
        participant = token.partition("-")[0]
        return self.participant(participant) if hmac.compare_digest(token, self.token(participant)) else None

    def participant(self, participant: str) -> sqlite3.Row | None:
        """A participant's row, and in ``done`` how many answers there are."""
        with self._transaction() as do:
            return _participant(do, participant)

    def add(
        self,
        participant: str,
        version_of: Any,
        *,
        browser: Mapping[str, float],
        recruitment: Mapping[str, str],
        consent_sha256: str,
        simulated: bool,
    ) -> sqlite3.Row:
        """The row of a participant, made if they are new: they get the next number, and ``version_of`` it."""
        with self._transaction() as do:
            if _participant(do, participant) is None:
                number = do("SELECT COALESCE(MAX(number) + 1, 0) FROM participants").fetchone()[0]
                row = (participant, number, version_of(number), _now(), None, json.dumps(browser), simulated)
                do(
                    "INSERT INTO participants VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (*row, json.dumps(recruitment), consent_sha256),
                )
            found = _participant(do, participant)
            assert found is not None
            return found

    def answer(self, participant: str, trial: int, answer: Mapping[str, Any], *, last: bool) -> None:
        """Store an answer; the same one again changes nothing.

        Raises:
            ConflictError: If there is another answer to this trial already, or an earlier trial has none.
        """
        with self._transaction() as do:
            row = _participant(do, participant)
            if row is None or trial > row["done"]:
                raise ConflictError("An earlier image has no answer yet.")
            if trial < row["done"]:
                there = do("SELECT * FROM answers WHERE participant = ? AND trial = ?", (participant, trial)).fetchone()
                if any(there[name] != value for name, value in answer.items()):
                    raise ConflictError("This image was answered already.")
                return
            columns = {"participant": participant, "trial": trial, "simulated": row["simulated"], "received": _now()}
            columns |= answer
            do(
                f"INSERT INTO answers ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})",
                tuple(columns.values()),
            )
            if last:
                do("UPDATE participants SET finished = ? WHERE id = ?", (columns["received"], participant))

    def delete(self, participant: str) -> bool:
        """Delete what there is of a participant; whether there was one."""
        with self._transaction() as do:
            do("DELETE FROM answers WHERE participant = ?", (participant,))
            there = bool(do("DELETE FROM participants WHERE id = ?", (participant,)).rowcount)
        with self._lock:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # the log holds the old rows too
        return there

    def close(self) -> None:
        """Leave everything in ``study.sqlite`` alone, without a write-ahead log beside it."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection.execute
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")


def _participant(do: Any, participant: str) -> sqlite3.Row | None:
    found: sqlite3.Row | None = do(
        "SELECT *, (SELECT COUNT(*) FROM answers WHERE participant = id) AS done FROM participants WHERE id = ?",
        (participant,),
    ).fetchone()
    return found


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def _write_secret(path: Path) -> None:
    """Whole or not at all, and readable by its owner only."""
    temporary = path.with_suffix(f".{os.getpid()}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as file:
        file.write(secrets.token_hex(32))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
