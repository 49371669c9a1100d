"""Storages by URL: a driver that is missing, and databases that cannot be reached or never answer, are one sentence."""

import sqlite3
import time

import pytest

from fewstep.checks import ConfigError
from fewstep.pipeline import storage as module
from fewstep.pipeline import trials as studies
from fewstep.pipeline.passwords import without_password as shown
from fewstep.pipeline.storage import open_storage, require_storage


def study(place):
    studies.open_study(place, "parabola", {"of": "test"})


def said(use, place):
    with pytest.raises(ConfigError) as error:
        use(place)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("use", [require_storage, study])
def test_a_missing_driver_is_named(use, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "psycopg2", None)
    text = said(use, "postgresql://anne:secret@localhost:1/none")
    assert text == (
        "The storage postgresql://anne:***@localhost:1/none needs the driver psycopg2, which is not installed; install "
        "it with pip, or name another storage."
    )


@pytest.mark.parametrize("use", [require_storage, study])
@pytest.mark.parametrize(
    "place", ["nonsense://x", "mysql+none://x/y", "sqlite:////nowhere/study.db", "{tmp}"]
)
def test_what_is_no_storage_is_one_sentence(use, place, tmp_path):
    assert "must be a journal file or a database that can be reached, but: " in said(
        use, place.format(tmp=tmp_path)
    )


@pytest.mark.parametrize("use", [require_storage, study])
def test_a_database_that_never_answers_is_given_up(use, monkeypatch):
    """Whatever its driver does: some wait for ever for a server that takes the connection and is silent."""
    monkeypatch.setattr(module, "PATIENCE", 0.3)
    monkeypatch.setattr(module, "Database", lambda url: time.sleep(30))
    began = time.monotonic()
    text = said(use, "postgresql://anne:secret@10.255.255.1/none")
    assert time.monotonic() - began < 5
    assert "but: it has not answered within 0.3 s; name another one." in text and "secret" not in text


def test_a_locked_sqlite_file_is_one_sentence(tmp_path):
    place = tmp_path / "study.db"
    require_storage(f"sqlite:///{place}")
    with sqlite3.connect(place) as other:
        other.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        assert "database is locked" in said(require_storage, f"sqlite:///{place}")
        assert time.monotonic() - began < module.PATIENCE + 5
    other.close()


def test_patience_is_at_most_a_quarter_of_a_minute():
    assert module.PATIENCE <= 15


def test_a_storage_that_was_opened_in_another_thread_is_used_in_this_one(tmp_path):
    storage = open_storage(f"sqlite:///{tmp_path / 'study.db'}")
    assert storage.get_all_studies() == []


def test_passwords_are_not_shown():
    assert shown("mysql+pymysql://anne:se:cr/et@host/db") == "mysql+pymysql://anne:***@host/db"
    assert (
        shown("postgresql://host/db") == "postgresql://host/db" and shown("a/journal.log") == "a/journal.log"
    )
