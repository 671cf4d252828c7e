"""A stand-in for `gcloud` and for the hosts of a TPU: calls are recorded, fail on demand, and what is to happen on a
host happens here, in a home directory of its own."""

import json
import os
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

GCLOUD = """
import json, os, pathlib, shutil, signal, subprocess, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a word
arguments, cloud = sys.argv[1:], pathlib.Path(os.environ["CLOUD"])
options = dict(word[2:].split("=", 1) for word in arguments if word.startswith("--") and "=" in word)
stage = arguments[2] if arguments[0] == "storage" else arguments[3]
stage = options["command"].split()[2] if stage == "ssh" else stage
stage = {"describe": "bucket"}.get(stage, stage) if arguments[0] == "storage" else stage
with (cloud / "calls").open("a") as calls:
    calls.write(json.dumps([stage, arguments]) + "\\n")
plan = json.loads((cloud / "plan").read_text())
behaviours = plan.get(stage, [])
behaviour = behaviours.pop(0) if len(behaviours) > 1 else (behaviours or ["well"])[0]
(cloud / "plan").write_text(json.dumps(plan))
if behaviour == "fail":
    sys.exit(f"ERROR: (gcloud) made-up failure of {stage}")
on_hosts = [cloud / f"host-{worker}" for worker in range(int(os.environ["HOSTS"]))]
if options.get("worker") == "0":
    on_hosts = on_hosts[:1]
if stage == "bucket":
    print("US-CENTRAL1")
elif stage == "describe":
    if "format" not in options:
        sys.exit("error: {message: no capacity}")
    states = json.loads((cloud / "states").read_text())
    if not states or (states[0] == "NOT_FOUND" and states.pop(0)):
        (cloud / "states").write_text(json.dumps(states))
        sys.exit("ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: no such queued resource")
    print(states.pop(0) if len(states) > 1 else states[0])
    (cloud / "states").write_text(json.dumps(states))
elif stage == "scp":
    for host in on_hosts:
        host.mkdir(exist_ok=True)
        for source in arguments[4:6]:
            shutil.copy(source, host)
elif stage.startswith("host_"):
    for _ in range(2 if behaviour == "repeat" else 1):
        running = []
        for host in on_hosts:
            environment = os.environ | {"HOME": str(host), "HOST": host.name}
            command = ["bash", "-c", options["command"]]
            running.append(subprocess.Popen(command, cwd=host, env=environment, stdout=subprocess.PIPE))
        for process in running:
            for number, line in enumerate(process.stdout):
                if behaviour == "drop" and number == 2:
                    process.kill()
                    sys.exit(255)
                sys.stdout.buffer.write(line)
                sys.stdout.flush()
        code = max(process.wait() for process in running)
    sys.exit(code)
"""
"""`CLOUD/plan` says how each stage behaves: well, fail, drop (the connection breaks after two lines), repeat (gcloud
runs the command again, as it does when a connection broke); the last word of a list holds for all further calls."""

UV = """
import os, pathlib, sys
pathlib.Path(os.environ["HOME"], "uv").open("a").write(" ".join(sys.argv[1:]) + "\\n")
if sys.argv[1] == "venv":
    python = pathlib.Path(sys.argv[-1], "bin", "python")
    python.parent.mkdir(parents=True)
    python.symlink_to(os.environ["CLOUD"] + "/bin/host-python")
"""

HOST_PYTHON = """
import json, os, pathlib, subprocess, sys
with pathlib.Path(os.environ["HOME"], "jobs").open("a") as jobs:
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
        """States that the queued resource goes through, and how stages behave."""
        (self.folder / "states").write_text(json.dumps(states or ["NOT_FOUND", "ACTIVE"]))
        (self.folder / "plan").write_text(json.dumps(stages))

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
        command = [str(SCRIPT), *map(str, arguments)]
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
        path = self.folder / f"host-{host}" / "jobs"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def on_host(self, host: int, *words: str) -> Path:
        """A path below what is installed on a host."""
        return self.folder.joinpath(f"host-{host}", "llama_jax", *words)


@contextmanager
def cloud_in(folder: Path, job: str = "echo first; echo second") -> Iterator[Cloud]:
    """A cloud where the TPU is there at the second look, and all goes well; jobs end with the block."""
    (folder / "home").mkdir(parents=True)
    (folder / "bin").mkdir()
    programs = {"gcloud": GCLOUD, "uv": UV, "host-python": HOST_PYTHON}
    for name, code in programs.items():
        (folder / "bin" / name).write_text(f"#!{sys.executable} -S\n{code}")
    (folder / "bin" / "sleep").write_text(f'#!/bin/bash\necho "$1" >> {folder}/sleeps\nread -t 0.02 < <(:) || true\n')
    (folder / "bin" / "hostname").write_text('#!/bin/bash\necho "$HOST"\n')
    for path in (folder / "bin").iterdir():
        path.chmod(0o755)
    cloud = Cloud(folder, job)
    cloud.plan()
    try:
        yield cloud
    finally:
        for pid in folder.glob("host-*/llama_jax/job/pid"):
            with suppress(ProcessLookupError):
                os.killpg(int(pid.read_text()), signal.SIGKILL)
