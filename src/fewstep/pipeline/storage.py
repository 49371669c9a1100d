"""Where studies are kept: a journal file, or a database that several machines reach."""

import re
import threading

from optuna.storages import BaseStorage, JournalStorage, RDBStorage

from fewstep.checks import ConfigError
from fewstep.pipeline.journal import Journal

PATIENCE = 15.0  # seconds for a database to answer


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
            f"The storage {shown(place)} needs the driver {driver}, which is not installed; install it with pip, or "
            "name another storage."
        )
    return ConfigError(
        f"The storage {shown(place)} must be a journal file or a database that can be reached, but: "
        f"{' '.join(str(error).split())[:200]}; name another one."
    )


def shown(place: str) -> str:
    """A storage for messages: without the password of its URL."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", place)


def _connected(url: str) -> BaseStorage:
    """A database that has answered. In a thread of its own, as each driver has another way to wait for ever."""
    outcome: list[BaseStorage | Exception] = []

    def connect() -> None:
        try:
            storage = RDBStorage(url)
            storage.get_all_studies()
            outcome.append(storage)
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    answer = outcome[0] if outcome else TimeoutError(f"it has not answered within {PATIENCE:g} s")
    if isinstance(answer, Exception):
        raise answer
    return answer
