"""The Slurm script and the Dockerfile: checked by their linters; the script runs with stand-ins for Slurm's commands.

Where Docker or Slurm are, the real ones are used too (slow).
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
SLURM, DOCKERFILE = SCRIPTS / "slurm.sh", SCRIPTS / "Dockerfile"
GPU = SCRIPTS.parent / "benchmarks" / "gpu.sh"
STAND_IN = """#!/bin/bash
name=$(basename "$0")
trap 'kill $(jobs -p) 2>/dev/null; exit 130' TERM
echo "$name $*" >> "$LOG"
case "$name $1" in
    "scontrol show") printf 'node7\\nnode8\\nnode9\\n' ;;
    srun*) exec sleep 60 ;;
    "ray status") grep -q head "$LOG" && [ "$(grep -c '^ray status' "$LOG")" -ge 3 ] ;;
    nas-kd*) sleep "$SEARCH_S" & wait; exit "$SEARCH_CODE" ;;
esac
"""


def tool(name: str) -> str:
    """A linter that the development environment brings."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name} is not installed: pip install -e '.[dev]'")
    return found


@pytest.mark.parametrize(
    ("linter", "file"), [("shellcheck", SLURM), ("shellcheck", GPU), ("hadolint", DOCKERFILE)]
)
def test_a_linter_finds_nothing(linter, file):
    done = subprocess.run([tool(linter), str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("linter", "text"), [("shellcheck", "#!/bin/bash\nrm $1\n"), ("hadolint", "FROM debian\n")]
)
def test_the_linters_find_what_is_wrong(linter, text, tmp_path):
    (tmp_path / "wrong").write_text(text)
    assert subprocess.run([tool(linter), str(tmp_path / "wrong")], capture_output=True).returncode


@pytest.fixture
def cluster(tmp_path):
    """Stand-ins for the commands of a cluster, which write down how they are called; and their environment."""
    for name in ("scontrol", "srun", "ray", "nas-kd"):
        (tmp_path / name).write_text(STAND_IN)
        (tmp_path / name).chmod(0o755)
    log = tmp_path / "log"
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(log)}
    env |= {"SLURM_JOB_NODELIST": "node[7-9]", "SLURM_JOB_NUM_NODES": "3", "SLURM_JOB_ID": "41"}
    env |= {"SLURM_CPUS_PER_TASK": "8", "NAS_KD_SLURM_WAIT_S": "0"}
    return log, env | {"SEARCH_S": "0.3", "SEARCH_CODE": "0"}


def test_the_script_makes_one_ray_of_all_nodes_and_one_search(cluster):
    log, env = cluster
    words = ["--teacher", "cheng2020", "--name", "with space"]
    done = subprocess.run(["bash", str(SLURM), *words], env=env, timeout=30)
    assert done.returncode == 0
    said = log.read_text().splitlines()
    starts = [line for line in said if line.startswith("srun")]
    ray = "ray start --block --disable-usage-stats --num-cpus=8"
    assert starts == [
        f"srun --nodes=1 --ntasks=1 --nodelist=node7 {ray} --head --port=20041",
        f"srun --nodes=2 --ntasks=2 --exclude=node7 {ray} --address=node7:20041",
    ]
    search = "nas-kd search --teacher cheng2020 --name with space --address node7:20041"
    assert [line for line in said if line.startswith("nas-kd")] == [search]
    last_look = max(i for i, line in enumerate(said) if line.startswith("ray status"))
    assert said.index(starts[0]) < last_look < min(said.index(starts[1]), said.index(search))


def test_the_searchs_exit_code_is_the_jobs(cluster):
    _, env = cluster
    done = subprocess.run(["bash", str(SLURM)], env=env | {"SEARCH_CODE": "2"}, timeout=30)
    assert done.returncode == 2


def test_at_its_time_limit_the_search_stops_and_the_job_lines_up_again(cluster):
    log, env = cluster
    with subprocess.Popen(["bash", str(SLURM)], env=env | {"SEARCH_S": "30"}) as job:
        while job.poll() is None and "nas-kd" not in (log.read_text() if log.exists() else ""):
            time.sleep(0.02)
        job.send_signal(signal.SIGTERM)  # as --signal=B:TERM@120 does
        assert job.wait(60) == 130
    assert log.read_text().splitlines()[-1] == "scontrol requeue 41"


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(3600)
def test_the_image_is_built_and_runs():
    known = shutil.which("docker") is not None
    if not known or subprocess.run(["docker", "info"], capture_output=True).returncode:
        pytest.skip("no Docker daemon here")
    root = SCRIPTS.parent
    build = ["docker", "build", "-f", str(DOCKERFILE), "--build-arg", "BACKEND=cpu"]
    subprocess.run([*build, "-t", "nas-kd:test", str(root)], check=True)
    done = subprocess.run(["docker", "run", "--rm", "nas-kd:test"], capture_output=True, text=True)
    assert "device:" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(shutil.which("sbatch") is None, reason="no Slurm here")
def test_the_job_runs_on_a_cluster(tmp_path):
    words = ["--budget", "1", "--steps", "1", "--set", "crops=16", "--objectives", "bd_rate,flops"]
    submit = ["sbatch", "--wait", "--nodes=1", "--gpus-per-node=0", "--time=20", str(SLURM)]
    subprocess.run([*submit, *words], cwd=tmp_path, check=True)
    assert (tmp_path / "studies" / "demo-mini" / "study.db").is_file()
