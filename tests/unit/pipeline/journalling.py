"""Processes that append to a journal, to be killed in the midst.

`hold JOURNAL`: one that has the lock. `kill JOURNAL N SIGNAL`: N of them, one after another, each killed at full speed;
prints how many operations the journal holds after each.
"""

import os
import random
import signal
import sys
import time

from fewstep.pipeline.journal import Journal, _locked

LONGEST = 0.05  # seconds that a process lives


def append_forever(place):
    journal = Journal(place)
    for i in range(10**9):
        journal.append_logs([{"i": i, "filling": "x" * 2000}])


def killed(place, how, seconds):
    """The operations in the journal after a process was killed that appended to it."""
    process = os.fork()
    if process == 0:
        append_forever(place)
    time.sleep(seconds)
    os.kill(process, how)
    os.waitpid(process, 0)
    journal = Journal(place)
    journal.append_logs([{"i": -1}])
    return list(journal.read_logs(0))


if __name__ == "__main__":
    if sys.argv[1] == "hold":
        Journal(sys.argv[2])
        with _locked(Journal(sys.argv[2])._path):
            print("locked", flush=True)
            time.sleep(600)
    else:
        place, kills, how = sys.argv[2], int(sys.argv[3]), signal.Signals[sys.argv[4]]
        chance = random.Random(0)
        for _ in range(kills):
            print(len(killed(place, how, chance.uniform(0, LONGEST))), flush=True)
