"""Where studies are kept: a journal file, or a database that several machines reach."""

import functools
import logging
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError, SQLAlchemyError

from fewstep.checks import ConfigError
from fewstep.pipeline.journal import Journal
from fewstep.pipeline.passwords import without_password

log = logging.getLogger(__name__)

PATIENCE = 15.0  # seconds for a database to answer
RESTART = 300.0  # seconds for one that has answered to come back
BEAT = 15  # seconds between two signs of life of a trial
GRACE = 120  # seconds without one after which its worker counts as dead, on whatever machine, by the database's clock
_STARTS = (
    8  # attempts to make the tables of an empty database, which workers that start together make at once
)


def open_storage(place: str) -> BaseStorage:
    """The storage at a place.
    Args: place: a journal file, or the URL of a database.
    Raises: ConfigError: it cannot be used, its driver is missing, or it does not answer within `PATIENCE`.
    """
    try:
        return _connected(place) if "://" in place else JournalStorage(Journal(place))
    except Exception as error:  # each database has errors of its own
        raise unusable(place, error) from None


def require_storage(place: str) -> None:
    """Fail before work starts where a storage cannot be reached.
    Raises: ConfigError: as in `open_storage`.
    """
    open_storage(place)


def unusable(place: str, error: Exception) -> ConfigError:
    """What to raise where a storage cannot be used."""
    if isinstance(error, ImportError):
        driver = getattr(error.__cause__, "name", None) or "of its database"
        return ConfigError(
            f"The storage {without_password(place)} needs the driver {driver}, which is not installed; install it with "
            "pip, or name another storage."
        )
    reason = " ".join(without_password(str(error)).split())[:200]
    return ConfigError(
        f"The storage {without_password(place)} must be a journal file or a database that can be reached, but: "
        f"{reason}; name another one."
    )


class Database(RDBStorage):
    """A database whose server may be restarted: what is asked of it meanwhile waits, for `RESTART` seconds."""

    waits = False
    """Whether it has answered before."""

    def __init__(self, url: str) -> None:
        options = {} if url.startswith("sqlite") else {"pool_pre_ping": True}
        with warnings.catch_warnings():  # of what Optuna may still change: its version is pinned
            warnings.simplefilter("ignore", ExperimentalWarning)
            super().__init__(url, engine_kwargs=options, heartbeat_interval=BEAT, grace_period=GRACE)


def _waiting(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: Database, *arguments: Any, **options: Any) -> Any:
        began, pause = time.monotonic(), 0.5
        while True:
            try:
                return method(self, *arguments, **options)
            except (StorageInternalError, SQLAlchemyError) as error:
                if not self.waits or not _is_cut(error):
                    raise
                waited = time.monotonic() - began
                if waited > RESTART:
                    raise ConfigError(
                        f"The storage {without_password(self.url)} must be reached all the time, but has not answered "
                        f"for {waited:.0f} s; the search resumes when it is started again."
                    ) from None
                if pause == 0.5:
                    log.warning(
                        "The storage %s does not answer; the search waits for it.", without_password(self.url)
                    )
            time.sleep(pause)
            pause = min(2 * pause, 10.0)

    return call


for _name in ("_create_new_trial", "_set_trial_param", "_get_trials", "_get_best_trial_id", "_get_stale_trial_ids",
              "record_heartbeat", *BaseStorage.__abstractmethods__):  # fmt: skip
    setattr(Database, _name, _waiting(getattr(RDBStorage, _name)))


def _is_cut(error: Exception) -> bool:
    """Whether it was the connection that failed, not what was asked for."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    if isinstance(cause, IntegrityError):
        return False
    return isinstance(cause, OperationalError | InterfaceError) or (
        isinstance(cause, DBAPIError) and cause.connection_invalidated
    )


def _connected(url: str) -> BaseStorage:
    """A database that has answered. In a thread of its own, as each driver has another way to wait for ever."""
    outcome: list[BaseStorage | Exception] = []

    def connect() -> None:
        for attempt in range(1, _STARTS + 1):
            try:
                storage = Database(url)
                storage.get_all_studies()
                outcome.append(storage)
                return
            except Exception as error:
                if attempt == _STARTS or not _was_made_by_another(error):
                    outcome.append(error)
                    return
            time.sleep(0.1 * attempt)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    answer = outcome[0] if outcome else TimeoutError(f"it has not answered within {PATIENCE:g} s")
    if isinstance(answer, Exception):
        raise answer
    if isinstance(answer, Database):
        answer.waits = True
    return answer


def _was_made_by_another(error: Exception) -> bool:
    """Whether a table, a type or a row was there already when it was to be made: another worker was faster."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    if isinstance(cause, IntegrityError):
        return True
    return isinstance(cause, DBAPIError) and "already exists" in str(cause)
