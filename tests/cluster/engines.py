"""Real engines on this machine: SLURM with two nodes, PostgreSQL, an MLflow server; in network namespaces of their own.

Each needs its Debian package (slurm-wlm, munge, postgresql) and root. `Missing` says what a machine lacks.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

NODES = ("n1", "n2")
PREFIX = f"fewstep{os.getpid()}"


class Missing(Exception):
    """What an engine needs and this machine does not have."""


def ran(*words: str | Path, **options: object) -> str:
    """The output of a command that must succeed; else `Missing`, as the sandbox refuses it."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, **options)  # type: ignore[call-overload]
    if done.returncode:
        raise Missing(f"{' '.join(map(str, words))}: {(done.stderr or done.stdout).strip()[-300:]}")
    return str(done.stdout)


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Return when a condition holds; AssertionError after some seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(0.2)


def _require(*programs: str) -> None:
    for name in programs:
        if shutil.which(name) is None:
            raise Missing(f"{name} is not installed")
    if os.geteuid() != 0:
        raise Missing("only root may make namespaces")


CONF = Path(
    "/etc/slurm/slurm.conf"
)  # SLURM_CONF does not reach the steps of jobs: they drop what starts with SLURM_
GRES_CONF = "Name=gpu File=/dev/null\n"
SLURM_CONF = """
ClusterName=fewstep
SlurmctldHost=ctl(10.99.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={top}/munge.socket
CredType=cred/munge
StateSaveLocation={top}/state
SlurmdSpoolDir={top}/spool-%n
SlurmctldPidFile={top}/ctl.pid
SlurmdPidFile={top}/%n.pid
SlurmctldLogFile={top}/ctl.log
SlurmdLogFile={top}/%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,batch_sched_delay=0
GresTypes=gpu
KillWait=5
PropagateResourceLimits=NONE
NodeName=n1 NodeAddr=10.99.0.11 NodeHostname=n1 CPUs=8 RealMemory=200000 Gres=gpu:1
NodeName=n2 NodeAddr=10.99.0.12 NodeHostname=n2 CPUs=8 RealMemory=200000 Gres=gpu:1
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    """A cluster of two nodes with a made-up GPU each; commands run on its login node, which has none."""

    def words(self, *words: str) -> list[str]:
        """A command as the login node runs it."""
        return ["nsenter", f"--net=/run/netns/{PREFIX}-ctl", *words]

    def run(self, *words: str) -> str:
        """The output of one of its commands, such as `squeue`."""
        return ran(*self.words(*words))

    def jobs(self, state: str | None = None) -> dict[str, str]:
        """Comments of the jobs in the queue, by id."""
        rows = self.run("squeue", "--noheader", "--format=%i|%k|%T").splitlines()
        found = [row.split("|") for row in rows]
        return {job: comment for job, comment, its in found if state in (None, its)}


@contextmanager
def slurm(top: Path) -> Iterator[Slurm]:
    """A running cluster, whose files are in a folder."""
    _require("slurmctld", "slurmd", "munged", "ip", "nsenter", "unshare")
    with ExitStack() as stack:
        spaces = [f"{PREFIX}-{name}" for name in ("ctl", *NODES)]
        for space in spaces:
            ran("ip", "netns", "add", space)
            stack.callback(subprocess.run, ["ip", "netns", "del", space], check=False)
            ran("ip", "-n", space, "link", "set", "lo", "up")
        ctl = spaces[0]
        ran("ip", "-n", ctl, "link", "add", "br0", "type", "bridge")
        ran("ip", "-n", ctl, "link", "set", "br0", "up")
        ran("ip", "-n", ctl, "addr", "add", "10.99.0.1/24", "dev", "br0")
        for i, space in enumerate(spaces[1:], 1):
            ran(
                "ip",
                "-n",
                ctl,
                "link",
                "add",
                f"v{i}",
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                space,
            )
            ran("ip", "-n", ctl, "link", "set", f"v{i}", "master", "br0", "up")
            ran("ip", "-n", space, "addr", "add", f"10.99.0.1{i}/24", "dev", "eth0")
            ran("ip", "-n", space, "link", "set", "eth0", "up")
        (top / "state").mkdir(parents=True)
        top.chmod(
            0o755
        )  # of a folder of pytest, which only its owner may enter, munged would not make its socket
        key = top / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        files = [f"--{name}-file={top}/munge.{name}" for name in ("key", "pid", "log", "seed")]
        ran("munged", "--force", f"--socket={top}/munge.socket", *files)
        stack.callback(_end, top / "munge.pid")
        for path, text in ((CONF, SLURM_CONF.format(top=top)), (CONF.with_name("gres.conf"), GRES_CONF)):
            if path.exists():
                raise Missing(f"{path} is there already: this machine has a SLURM of its own")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            stack.callback(path.unlink)
        for name, space, daemon in (
            ("ctl", ctl, "slurmctld -c"),
            *((n, f"{PREFIX}-{n}", "slurmd") for n in NODES),
        ):
            (top / f"spool-{name}").mkdir()
            start = f"hostname {name}; exec {daemon}"
            ran("nsenter", f"--net=/run/netns/{space}", "unshare", "--uts", "sh", "-c", start)
            stack.callback(_end, top / f"{name}.pid")
        cluster = Slurm()
        stack.callback(_cancel_all, cluster)
        wait_for(
            lambda: cluster.run("sinfo", "--noheader", "--format=%t %D").strip() == "idle 2",
            30,
            "two idle nodes",
        )
        yield cluster


def _cancel_all(cluster: Slurm) -> None:
    if jobs := list(cluster.jobs()):
        cluster.run("scancel", *jobs)
        wait_for(lambda: not cluster.jobs(), 60, "jobs that end")


def _end(pid_file: Path) -> None:
    if pid_file.exists():
        end(int(pid_file.read_text()))


def end(process: int, how: signal.Signals = signal.SIGTERM) -> None:
    """End a process that was started here, and wait until it has gone."""
    try:
        os.kill(process, how)
        wait_for(lambda: not Path("/proc", str(process)).exists(), 20, f"the end of process {process}")
    except ProcessLookupError:
        pass


class Postgres:
    """A server of PostgreSQL on the loopback interface, with a user that has a password."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self._data, self._programs = folder / "data", programs
        self.port = free_port()

    def _as_postgres(self, *words: str | Path) -> None:
        ran("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *words, cwd="/")

    def make(self) -> None:
        """Make the files of the server."""
        self._data.parent.mkdir(parents=True)
        shutil.chown(self._data.parent, "postgres")
        secret = self._data.parent / "secret"
        secret.write_text("pass:w/rd\n")
        secret.chmod(0o644)
        self._as_postgres(
            self._programs / "initdb",
            "-D",
            self._data,
            "-U",
            "anne",
            f"--pwfile={secret}",
            "-A",
            "scram-sha-256",
            "-N",
        )

    def start(self) -> None:
        """Start it."""
        options = f"-h 127.0.0.1 -p {self.port} -k '' -c fsync=off"
        log = self._data.parent / "server.log"
        self._as_postgres(
            self._programs / "pg_ctl", "-D", self._data, "-w", "-l", log, "-o", options, "start"
        )

    def stop(self) -> None:
        """Stop it, and cut all connections."""
        self._as_postgres(self._programs / "pg_ctl", "-D", self._data, "-w", "-m", "immediate", "stop")

    def database(self, name: str) -> str:
        """The URL of a new, empty database."""
        words = ["psql", "-q", "-h", "127.0.0.1", "-p", str(self.port), "-U", "anne", "postgres"]
        ran(*words, "-c", f'create database "{name}"', env={**os.environ, "PGPASSWORD": "pass:w/rd"})
        return f"postgresql+psycopg2://anne:pass%3Aw%2Frd@127.0.0.1:{self.port}/{name}"


@contextmanager
def postgres(folder: Path) -> Iterator[Postgres]:
    """A running server."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        raise Missing("postgresql is not installed")
    _require("setpriv", "psql")
    server = Postgres(folder, found[-1].parent)
    server.make()
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[int]:
    """A server of MLflow on SQLite; its process."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [
        Path(sys.executable).with_name("mlflow"), "server", "--host", "127.0.0.1", "--port", port, "--workers", 1,
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", folder / "artifacts",
    ]  # fmt: skip
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            [str(word) for word in words], stdout=log, stderr=log, env=environment, start_new_session=True
        )
    try:
        wait_for(lambda: _listens(port), 120, "the MLflow server")
        yield server.pid
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0
