"""A driver without Ray: a process that asks, waits as long as a trial takes, and tells."""

import os
import time
from pathlib import Path

from nas_kd.study.record import Outcome
from nas_kd.study.study import Settings, Study

SETTINGS = Settings(name="s", space="demo", objectives=("bd_rate", "flops"))


def drive(folder: str, storage: str | None, budget: int, work_s: float) -> None:
    """Search; a line of the folder's ``asked`` per trial that is begun."""
    os.chdir(folder)
    study = Study(SETTINGS, storage)
    with study.driving():
        while study.counted() < budget:
            study.reap()
            asked = study.ask(budget)
            if asked is None:
                time.sleep(0.02)
                continue
            with Path("asked").open("a") as log:
                log.write(f"{os.getpid()} {asked[0]} {asked[1].key}\n")
            time.sleep(work_s)
            study.tell(asked[0], Outcome([float(asked[0] % 7), float(asked[0] % 5)]))
