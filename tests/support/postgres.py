"""A PostgreSQL server of the distribution's, started for a test on a Unix socket."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def missing() -> str | None:
    """Why no server can be started here, if none can."""
    if not list(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")):
        return "no PostgreSQL in /usr/lib/postgresql"
    if os.getuid() == 0:
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            return "PostgreSQL does not run as root, and there is no user postgres"
    try:
        import psycopg2  # noqa: F401
    except ImportError:
        return "psycopg2 is not installed"
    return None


@contextmanager
def server() -> Iterator[str]:
    """The URL of an empty database; the server ends with the context."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    # initdb refuses root, and a socket's path may have 107 characters at most.
    if os.getuid() == 0:
        user = pwd.getpwnam("postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)
        who = {"user": "postgres", "group": user.pw_gid}
    else:
        who = {}
    data = str(folder / "data")
    options = f"-c listen_addresses= -c fsync=off -k {folder}"
    start = [binaries / "pg_ctl", "-D", data, "-w", "-l", str(folder / "log"), "-o", options]

    def call(*words: str | Path) -> None:
        quiet = subprocess.DEVNULL
        subprocess.run(words, check=True, cwd=folder, stdout=quiet, timeout=60, **who)

    call(binaries / "initdb", "-D", data, "-U", "nas", "--auth=trust", "--no-sync")
    call(*start, "start")
    try:
        call(binaries / "createdb", "-h", str(folder), "-U", "nas", "studies")
        yield f"postgresql://nas@/studies?host={folder}"
    finally:
        call(binaries / "pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)
