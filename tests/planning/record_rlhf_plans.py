"""Plan all of RLHF at 7B for hardware that is not here, keep the results in rlhf_plans.json, and write the tables of
llama_jax/pipeline/README.md: `python tests/planning/record_rlhf_plans.py`, with both extras `plan` and `plan-gpu`.
Takes about a quarter of an hour on two cores; arguments choose plans by their number."""

from typing import Any

from record_plans import FOLDER, GIB, origin, record

KEPT = FOLDER / "rlhf_plans.json"
README = FOLDER.parents[1] / "llama_jax" / "pipeline" / "README.md"
BEGIN = "<!-- plans: made by tests/planning/record_rlhf_plans.py -->"

PLANS = (
    "--config rlhf_7b --topology v5e-16 --ppo.mesh.fsdp 1 --ppo.mesh.tensor 16",
    "--config rlhf_7b --topology h100:1x1",
)
"""Arguments of `llama_jax.plan`."""


def tables(plans: list[dict[str, Any]]) -> str:
    """The plans for the README: what each program needs, and what an iteration comes to."""
    parts = [_programs(plan) for plan in plans]
    return "\n\n".join([*parts, _iterations(plans), origin(plans)])


def _programs(plan: dict[str, Any]) -> str:
    header = "| program | fits | peak of limit, GiB | beside it | by a model: bound, seconds | compiled |"
    stages = plan["stages"]
    steps = [(f"{name} step", 1, stages[name]) for name in ("sft", "reward") if name in stages]
    steps += [(f"ppo {each['phase']}: {each['program']}", each["runs"], each) for each in stages["ppo"]["programs"]]
    return "\n".join([f"`plan {plan['arguments']}`", "", header, "|---" * 6 + "|", *(_row(*step) for step in steps)])


def _row(name: str, runs: int, report: dict[str, Any]) -> str:
    memory = report["memory"]
    beside = f"{memory['beside'] / GIB:.2f}" if "beside" in memory else ""
    if report["fits"]:
        taken, bound = memory["limit"] - memory["headroom"], report["roofline"]
        times = f" x {runs:,}" if runs > 1 else ""
        cells = ["yes", taken, f"{bound['bound']}, {bound['as_scheduled']:.3g}{times}"]
    else:
        cells = ["**no**", memory["needed"], ""]
    cells[1] = f"{cells[1] / GIB:.2f} of {memory['limit'] / GIB:.2f}"
    return f"| {name} | {cells[0]} | {cells[1]} | {beside} | {cells[2]} | {report['compile_seconds']:.0f} s |"


def _iterations(plans: list[dict[str, Any]]) -> str:
    names = [plan["topology"] for plan in plans]
    lines = [f"| an iteration of ppo, by a model | {' | '.join(names)} |", "|---" * (len(plans) + 1) + "|"]
    each = [plan["stages"]["ppo"]["iteration"] for plan in plans]
    lines += [f"| `{name}` | {' | '.join(_figure(found[name]) for found in each)} |" for name in each[0]]
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


if __name__ == "__main__":
    record(PLANS, KEPT, README, BEGIN, tables)
