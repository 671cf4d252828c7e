"""Finding out whether there are other processes to join."""

import contextlib
import http.server
import threading
from collections.abc import Iterator, Mapping

import pytest
from jax._src.clusters import cloud_tpu_cluster

from llama_jax.core.config import DistributedConfig
from llama_jax.core.processes.distributed import in_tpu_pod, start_up


@contextlib.contextmanager
def metadata(attributes: Mapping[str, str]) -> Iterator[str]:
    """The address of a server that says what a TPU VM asks its metadata server for."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            value = attributes.get(self.path.removeprefix("/computeMetadata/v1/instance/attributes/"))
            self.send_response(404 if value is None else 200)
            self.end_headers()
            self.wfile.write((value or "").encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def tpu_vm(monkeypatch) -> pytest.MonkeyPatch:
    """A machine with TPU chips that JAX has found."""
    monkeypatch.delenv("TPU_WORKER_HOSTNAMES", raising=False)
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    return monkeypatch


@pytest.mark.parametrize(
    ("endpoints", "slices", "expected"),
    [("10.0.0.1,10.0.0.2", "1", True), ("10.0.0.1", "1", False), ("10.0.0.1", "2", True)],
    ids=["two hosts", "one host", "two slices of one host"],
)
def test_a_tpu_vm_knows_from_its_metadata_whether_it_has_peers(endpoints, slices, expected, tpu_vm):
    attributes = {
        "agent-worker-number": "0",
        "worker-network-endpoints": endpoints,
        "tpu-env": f"ACCELERATOR_TYPE: 'v5litepod-16'\nMEGASCALE_NUM_SLICES: '{slices}'\n",
    }
    with metadata(attributes) as address:
        tpu_vm.setenv("GCE_METADATA_IP", address)
        assert in_tpu_pod() is expected


def test_chips_without_a_metadata_server_stand_alone(tpu_vm):
    with metadata({}) as address:
        pass
    tpu_vm.setenv("GCE_METADATA_IP", address)  # nobody listens there any more
    assert in_tpu_pod() is False


def test_hosts_that_kubernetes_started_are_listed_in_the_environment(monkeypatch):
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "host-0,host-1")
    assert in_tpu_pod()
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    assert not in_tpu_pod()


def test_a_slurm_job_whose_script_runs_the_command_without_srun_is_one_process(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert start_up(DistributedConfig()).startswith("process 0 of 1, ")
