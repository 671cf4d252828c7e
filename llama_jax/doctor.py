"""Look whether this machine is fit to train: `python -m llama_jax.doctor`."""

if __name__ == "__main__":
    from llama_jax.__main__ import main

    main("doctor")

import json
import sys

from llama_jax.core.processes.signals import let_work_tidy_up
from llama_jax.diagnosis.config import DoctorConfig
from llama_jax.diagnosis.examination import Examination
from llama_jax.diagnosis.findings import expected_processes
from llama_jax.diagnosis.gathering import this_host
from llama_jax.diagnosis.probe import Request
from llama_jax.diagnosis.report import Report
from llama_jax.diagnosis.watching import watched


def doctor(config: DoctorConfig) -> int:
    """Print what there is and what is wrong, section by section; writes no file.

    Returns:
        The exit code: 1 when something is broken.
    """
    let_work_tidy_up()
    host = this_host(config.run_dir)
    report = Report(sys.stderr if config.json else sys.stdout)
    examination = Examination(host, report, (config.distributed.num_processes or expected_processes(host)) > 1)
    try:
        for message in watched(Request(host, config)):
            examination.take(message)
    finally:
        report.close()
    result = examination.result()
    if examination.reports:
        report.findings(examination.found)
        report.verdict(result["verdict"], result["ready"])
    else:
        print(f"{examination.rank}: process 0 reports for all", file=sys.stderr if config.json else sys.stdout)
    if config.json and examination.reports:
        print(json.dumps(result))
    return 0 if result["ready"] else 1
