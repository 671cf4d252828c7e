"""A cloud that is a folder: a stand-in for `gcloud`, and for what it finds on the hosts of a TPU."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from command_runs import ROOT, Ended

SCRIPT = ROOT / "run_tpu.sh"
HOSTS = 2
"""Of each slice."""

TPU = ("--name", "llama", "--zone", "us-central1-a", "--project", "mine")
NEW_TPU = (*TPU, "--type", "v5litepod-16")
EVERYTHING = (*NEW_TPU, "--bucket", "gs://bucket", "--", "pretrain", "--config", "tiny/pretrain")
"""The arguments for all steps."""

NEW = ["create", "describe", "scp", "host_install", "host_start"]
"""What `gcloud` is called for where no TPU is there yet, until the command runs."""

UV = """#!/bin/bash
echo "$*" >> "$HOME/uv"
[[ $1 != venv ]] || { mkdir -p "${@: -1}/bin" && ln -s "$CLOUD/bin/host-python" "${@: -1}/bin/python"; }
"""

HOST_PYTHON = """
import json, os, sys
with open(os.environ["CLOUD"] + "/jobs-of-" + os.environ["HOST"], "a") as jobs:
    jobs.write(json.dumps([os.getcwd(), *sys.argv[1:]]) + "\\n")
os.execvp("bash", ["bash", "-c", os.environ["WORK"]])
"""


@dataclass(frozen=True)
class Cloud:
    """Where the stand-ins are and what they have recorded."""

    folder: Path
    job: str
    """What the job on a host does: a script for bash, with HOST set to host-0, host-1, …."""

    def plan(self, *states: str, **stages: list[str]) -> None:
        """States that the TPU is found in, and how stages behave: see `gcloud_stand_in`."""
        (self.folder / "states").write_text(json.dumps(states))
        (self.folder / "plan").write_text(json.dumps(stages))

    @property
    def script(self) -> Path:
        """A copy of `run_tpu.sh`."""
        return self.folder / "checkout" / "run_tpu.sh"

    @property
    def environment(self) -> Mapping[str, str]:
        return os.environ | {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "HOME": str(self.folder / "home"),
            "CLOUD": str(self.folder),
            "HOSTS": str(HOSTS),
            "WORK": self.job,
        }

    def run(self, *arguments: object) -> Ended:
        """Run the script to its end."""
        command = [str(self.script), *map(str, arguments)]
        return self.ended(subprocess.Popen(command, env=self.environment, stdout=-1, stderr=-1, text=True))

    def ended(self, process: subprocess.Popen) -> Ended:
        output, errors = process.communicate(timeout=600)
        return Ended(process.returncode, output, errors)

    def calls(self) -> list[list[str]]:
        """The arguments of each call of gcloud so far."""
        return [arguments for _, arguments in self._calls()]

    def stages(self) -> list[str]:
        """What each call of gcloud was for."""
        return [stage for stage, _ in self._calls()]

    def _calls(self) -> list[tuple[str, list[str]]]:
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def jobs(self, host: int) -> list[list[str]]:
        """Of each job started on a host: the working directory and the arguments of Python."""
        path = self.folder / f"jobs-of-host-{host}"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def on_host(self, host: int, *words: str) -> Path:
        """A path below what is installed on a host."""
        return self.folder.joinpath(f"host-{host}", "llama_jax", *words)


def option(call: list[str], name: str) -> str:
    """The value of an option in a call of gcloud."""
    return next(word.split("=", 1)[1] for word in call if word.startswith(f"--{name}="))


def installed(cloud: Cloud) -> Cloud:
    """The same cloud with a TPU on whose hosts all is installed."""
    (cloud.folder / "tpu").write_text("ACTIVE")
    assert cloud.run("install", *TPU).code == 0
    (cloud.folder / "calls").unlink()
    return cloud


def following(cloud: Cloud, *arguments: str) -> subprocess.Popen:
    """The script with arguments that show a log, when it has shown the first line, "ready"."""
    command = [cloud.script, *arguments]
    process = subprocess.Popen(command, env=cloud.environment, stdout=-1, stderr=-1, text=True, start_new_session=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


@contextmanager
def cloud_in(folder: Path, job: str = "echo first; echo second") -> Iterator[Cloud]:
    """A cloud where a TPU is there once it was asked for, and all goes well; jobs end with the block."""
    (folder / "home").mkdir(parents=True)
    (folder / "bin").mkdir()
    gcloud = Path(__file__).with_name("gcloud_stand_in.py").read_text()
    programs = {
        "gcloud": f"#!{sys.executable} -IS\n{gcloud}",
        "uv": UV,
        "host-python": f"#!{sys.executable} -IS\n{HOST_PYTHON}",
        "sleep": f'#!/bin/bash\necho "$1" >> {folder}/sleeps\nread -t 0.02 < <(:) || true\n',
        "hostname": '#!/bin/bash\necho "$HOST"\n',
    }
    for name, code in programs.items():
        (folder / "bin" / name).write_text(code)
        (folder / "bin" / name).chmod(0o755)
    cloud = Cloud(folder, job)
    # A checkout without most of its files, which is packed, copied and unpacked in no time.
    (cloud.script.parent / "llama_jax").mkdir(parents=True)
    (cloud.script.parent / "configs").mkdir()
    for name in ("run_tpu.sh", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, cloud.script.parent)
    for command in (ROOT / "llama_jax").glob("*.py"):
        shutil.copy(command, cloud.script.parent / "llama_jax")
    cloud.plan()
    try:
        yield cloud
    finally:
        for pid in folder.glob("host-*/llama_jax/job/pid"):
            with suppress(ProcessLookupError):
                os.killpg(int(pid.read_text()), signal.SIGKILL)
