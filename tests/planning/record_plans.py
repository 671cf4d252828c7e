"""Plan the published recipes for hardware that is not here, keep the results in plans.json, and write the table of
llama_jax/planning/README.md: `python tests/planning/record_plans.py`, with both extras `plan` and `plan-gpu`. Takes
about half an hour on two cores; arguments choose rows by their number."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
KEPT = FOLDER / "plans.json"
README = FOLDER.parents[1] / "llama_jax" / "planning" / "README.md"
BEGIN, END = "<!-- plans: made by tests/planning/record_plans.py -->", "<!-- plans end -->"

PLANS = (
    "--config pretrain_7b --topology v5e-256",
    "--config pretrain_7b --topology v5e-256 --compute.remat attention",
    "--config pretrain_7b --topology v5e-256 --compute.remat dots --training.microbatches 4",
    "--config pretrain_7b --topology v5e-256 --mesh.fsdp_stages [16,16]",
    "--config pretrain_7b --topology v5e-256 --num_slices 2 --mesh.data 2",
    "--config pretrain_7b --topology v6e-256",
    "--config pretrain_7b --topology v4-512",
    "--config pretrain_7b --topology v4-512 --mesh.fsdp_stages [4,8,8]",
    "--config pretrain_7b --topology h100:32x8",
    "--config pretrain_65b --topology v5p-1024",
    "--config pretrain_65b --topology v5p-1024 --mesh.fsdp_stages [8,8,8]",
    "--config pretrain_llama3_70b --topology v5p-1024",
    "--config lora_alpaca_7b --topology v5e-8 --training.microbatches 1",
    "--config pretrain_7b --topology v5e-8 --what decode --mesh.fsdp 1 --mesh.tensor 8",
    "--config pretrain_7b --topology v5e-8 --what decode --mesh.fsdp 1 --mesh.tensor 8 --decode_weights int8",
)
"""Arguments of `llama_jax.plan`."""

GIB = 2**30


def planned(arguments: str) -> dict[str, Any]:
    """What `plan --json` says."""
    command = [sys.executable, "-m", "llama_jax.plan", *arguments.split(), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {"arguments": arguments, "date": time.strftime("%Y-%m-%d"), **json.loads(done.stdout.splitlines()[-1])}


def table(plans: list[dict[str, Any]]) -> str:
    """The plans for the README."""
    header = (
        "| `plan` with | fits | peak of limit, GiB | FLOPs, program / formula | sent, GiB (x least) | "
        "by a model: bound, seconds, utilization | compiled |"
    )
    return "\n".join([header, "|---" * 7 + "|", *map(_row, plans), "", origin(plans)])


def _row(plan: dict[str, Any]) -> str:
    memory, flops = plan["memory"], plan["flops"]
    cells = [f"`{plan['arguments']}`", "yes" if plan["fits"] else "**no**"]
    if not plan["fits"]:
        short = f"{memory['needed'] / GIB:.2f} of {memory['limit'] / GIB:.2f}"
        return f"| {' | '.join([*cells, short, '', '', '', ''])} |"
    sent, bound = plan["communication"], plan["roofline"]
    ratio = "" if sent["ratio"] is None else f" ({sent['ratio']:.2f})"
    cells += [
        f"{memory['peak'] / GIB:.2f} of {memory['limit'] / GIB:.2f}",
        f"{flops['recomputation']:.2f}",
        f"{sent['wire_bytes'] / GIB:.3g}{ratio}",
        f"{bound['bound']}, {bound['as_scheduled']:.3g}, {bound['most_utilization']:.0%}",
        f"{plan['compile_seconds']:.0f} s",
    ]
    return f"| {' | '.join(cells)} |"


def origin(plans: list[dict[str, Any]]) -> str:
    """When and with what they were compiled."""
    versions = sorted({f"{name} {number}" for plan in plans for name, number in plan["versions"].items()})
    dates = sorted({plan["date"] for plan in plans})
    return f"Compiled {' to '.join(dict.fromkeys((dates[0], dates[-1])))} with {', '.join(versions)}."


def record(
    all_plans: Sequence[str], keep_in: Path, readme: Path, begin: str, shown: Callable[[list[dict[str, Any]]], str]
) -> None:
    """Make the plans that the command line asks for by number, or all; those that are kept already stay.

    Args:
        all_plans: arguments of `llama_jax.plan`.
        readme: shows them between the lines `begin` and `END`.
    """
    kept = {plan["arguments"]: plan for plan in json.loads(keep_in.read_text())} if keep_in.exists() else {}
    for arguments in [all_plans[int(number) - 1] for number in sys.argv[1:]] or all_plans:
        print(arguments, flush=True)
        kept[arguments] = planned(arguments)
        plans = [kept[each] for each in all_plans if each in kept]
        keep_in.write_text(json.dumps(plans, indent=1) + "\n")
        before, _, rest = readme.read_text(encoding="utf-8").partition(begin)
        after = rest.partition(END)[2]
        readme.write_text(f"{before}{begin}\n{shown(plans)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    record(PLANS, KEPT, README, BEGIN, table)
