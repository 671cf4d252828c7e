"""`run_tpu.sh --slices` against a stand-in for gcloud: one job on several TPUs."""

from collections import Counter

import pytest
from tpu_stand_in import EVERYTHING, NEW, TPU, Cloud, cloud_in, option

SLICES = ("--slices", "2")


def asked_of(cloud: Cloud, stage: str) -> list[str]:
    """The slices that a stage was called for, sorted: those of one stage are called at the same time."""
    calls = [call for call, made_for in zip(cloud.calls(), cloud.stages(), strict=True) if made_for == stage]
    return sorted(word.removesuffix(":") for call in calls for word in call if word.startswith("llama"))


def test_every_host_of_every_slice_takes_part_in_one_job(tmp_path, monkeypatch):
    for name, left in {"NUM_SLICES": "4", "SLICE_ID": "3", "COORDINATOR_ADDRESS": "10.0.0.9"}.items():
        monkeypatch.setenv(f"MEGASCALE_{name}", left)  # in the environment of a host, by a slice that is gone
    with cloud_in(tmp_path / "cloud", 'echo "$HOST: ${!MEGASCALE_@}."') as cloud:
        result = cloud.run("--delete", *SLICES, *EVERYTHING)
    assert (result.code, result.output) == (0, "host-0: .\n"), result
    [create] = [call for call in cloud.calls() if "create" in call]
    assert (option(create, "node-count"), option(create, "node-prefix")) == ("2", "llama")
    assert not any(word.startswith("--node-id") for word in create)
    for stage in ("scp", "host_install", "host_start"):
        assert asked_of(cloud, stage) == ["llama-0", "llama-1"]
    assert asked_of(cloud, "host_follow") == ["llama-0"]
    assert asked_of(cloud, "delete") == ["llama"]
    assert [cloud.jobs(host)[0][1:] for host in range(4)] == [cloud.jobs(0)[0][1:]] * 4
    assert list(Counter(cloud.stages())) == [
        "buckets",
        "describe",
        *[s for s in NEW if s != "describe"],
        "host_follow",
        "delete",
    ]


def test_a_slice_that_fails_fails_the_step_and_the_others_are_waited_for(tmp_path):
    with cloud_in(tmp_path / "cloud") as cloud:
        cloud.plan(host_install=["fail", "well"])
        result = cloud.run(*SLICES, *EVERYTHING)
    assert result.code == 1 and "host_start" not in cloud.stages()
    assert "error: install: not every host of llama has installed it\n" in result.errors
    assert result.errors.count("] installed\n") == 2


@pytest.mark.slow
def test_all_slices_are_told_to_stop_and_say_how_they_ended(tmp_path):
    with cloud_in(tmp_path / "cloud", '[[ $HOST != host-3 ]] || { echo "out of memory"; exit 1; }; exit 4') as cloud:
        result = cloud.run(*SLICES, *EVERYTHING)
        assert result.code == 4 and "[host-3] ended with exit code 1\nout of memory\n" in result.errors
        assert cloud.run("stop", *SLICES, *TPU).code == 0
    assert asked_of(cloud, "host_stop") == ["llama-0", "llama-1"]
