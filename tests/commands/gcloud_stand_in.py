"""What is called in place of `gcloud`, with `CLOUD` set to a folder: every call is recorded there, and what is to
happen on a host happens here, in a home directory of its own.

`CLOUD/plan` says how each stage behaves: well, fail, drop (the connection breaks after two lines), preempt (and the TPU
is taken away; it holds quota until it is deleted), vanish (and somebody deletes it), quota (nothing more can be
created), repeat (gcloud runs the command again, as it does when a connection broke); the last word of a list holds for
all further calls. `CLOUD/states` lists the states that the TPU is found in; empty, it is found in the one it is in. A
job saves a step by a line in `CLOUD/saved`, and makes a host unreachable by its name in `CLOUD/unreachable`.
"""

import fcntl
import json
import os
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE, Popen


def main(arguments: list[str]) -> None:
    """One call of gcloud."""
    options = dict(word[2:].split("=", 1) for word in arguments if word.startswith("--") and "=" in word)
    stage = arguments[1] if arguments[0] == "storage" else arguments[3]
    stage = options["command"].split()[2] if stage == "ssh" else stage
    behaviour = recorded(stage, arguments)
    if behaviour == "fail":
        sys.exit(f"ERROR: (gcloud) made-up failure of {stage}")
    hosts = range(int(os.environ["HOSTS"]))
    slices = [int(word.strip(":")[6:]) for word in arguments if word.startswith("llama-")] or [0]
    workers = hosts[:1] if options.get("worker") == "0" else hosts
    on_hosts = [f"host-{slices[0] * len(hosts) + worker}" for worker in workers]
    if stage == "buckets":
        print("US-CENTRAL1")
    elif stage == "ls":
        for step in read("saved").split():
            print(arguments[2].replace("*", step))
    elif stage == "create":
        if read("tpu") or behaviour == "quota":
            sys.exit("ERROR: (gcloud.compute.tpus.queued-resources.create) RESOURCE_EXHAUSTED: quota exceeded")
        Path("tpu").write_text("ACTIVE")
    elif stage == "delete":
        take_away("")
    elif stage == "describe":
        describe("format" in options)
    elif stage == "scp":
        for host in on_hosts:
            Path(host).mkdir(exist_ok=True)
            for source in arguments[4:6]:
                shutil.copy(source, host)
    else:
        code = 0
        for _ in range(2 if behaviour == "repeat" else 1):
            code = run_on(on_hosts, options["command"], behaviour)
        sys.exit(code)


def recorded(stage: str, arguments: list[str]) -> str:
    """How this call behaves, once it is recorded."""
    with Path("calls").open("a") as calls:
        fcntl.flock(calls, fcntl.LOCK_EX)  # those of several slices come together
        calls.write(json.dumps([stage, arguments]) + "\n")
        calls.flush()
        plan = json.loads(read("plan"))
        behaviours = plan.get(stage, ["well"])
        behaviour = behaviours.pop(0) if len(behaviours) > 1 else behaviours[0]
        Path("plan").write_text(json.dumps(plan))
    return behaviour


def describe(state_alone: bool) -> None:
    """What the TPU is in."""
    if not state_alone:
        sys.exit("error: {message: no capacity}")
    states = json.loads(read("states")) or [read("tpu") or "NOT_FOUND"]
    state = states.pop(0)
    if states:
        Path("states").write_text(json.dumps(states))
    if state == "NOT_FOUND":
        sys.exit("ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: no such queued resource")
    print(state)


def run_on(hosts: list[str], command: str, behaviour: str) -> int:
    """The worst exit code of a command on these hosts."""
    if read("unreachable").strip() in hosts:
        sys.exit(255)
    running = []
    for host in hosts:
        environment = os.environ | {"HOME": str(Path(host).resolve()), "HOST": host}
        running.append(Popen(["bash", "-c", command], cwd=host, env=environment, stdout=PIPE))
    for process in running:
        for number, line in enumerate(process.stdout):
            if behaviour in ("drop", "preempt", "vanish") and number == 2:
                process.kill()
                if behaviour != "drop":
                    take_away("SUSPENDED" if behaviour == "preempt" else "")
                sys.exit(255)
            sys.stdout.buffer.write(line)
            sys.stdout.flush()
    return max(process.wait() for process in running)


def take_away(state: str) -> None:
    """The hosts and all that runs there are gone; so is the TPU, unless it stays in a state."""
    for pid in Path().glob("host-*/llama_jax/job/pid"):
        with suppress(ProcessLookupError):
            os.killpg(int(pid.read_text()), signal.SIGKILL)
    for host in Path().glob("host-*"):
        shutil.rmtree(host, ignore_errors=True)
    Path("unreachable").write_text("")
    Path("tpu").write_text(state)


def read(name: str) -> str:
    """The text of a file, "" if there is none."""
    return Path(name).read_text() if Path(name).exists() else ""


signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a word
os.chdir(os.environ["CLOUD"])
main(sys.argv[1:])
