"""A plan as a person reads it."""

from colajax.parallel.batch import batch_shares

GB = 1e9


def text(config: str, plan: dict, target: dict) -> str:
    """The whole report; config: the name of the configuration, plan: of `plan.make_plan`, target: of `plan.target`."""
    parts = [_heading(config, plan), _memory(plan)]
    if "cycles" in plan:
        parts += [_compute(plan), _communication(plan)]
    parts += [_step(plan), _target(plan, target)]
    return "\n\n".join(parts)


def _heading(config: str, plan: dict) -> str:
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())
    rows = plan["batch_size"] // batch_shares(plan["mesh"])
    batch = f"batch {plan['batch_size']} x {plan['sequence_length']} ({rows} rows a device)"
    parts = f", in {plan['accumulation_steps']} parts" if plan["accumulation_steps"] > 1 else ""
    how = (
        f"compiled by libtpu in {plan['compile_seconds']:.0f} s; nothing has run"
        if plan["how"] == "compiled"
        else "not compiled: arithmetic on shapes, for a device that there is no compiler for here"
    )
    devices = "" if plan["devices"] == plan["chips"] else f", {plan['devices']} devices"
    return (
        f"{config} on {plan['topology']} ({plan['chips']} chips{devices})\n"
        f"mesh {mesh}, {batch}{parts}, remat {plan['remat']}\n{how}"
    )


def _memory(plan: dict) -> str:
    available = f" of {plan['available'] / GB:.1f}: fits" if plan["available"] else ""
    rows = [(kind, size / GB, "") for kind, size in plan["memory"].items()]
    return _table(f"memory of a device, GB{available}", rows)


def _compute(plan: dict) -> str:
    total = plan["cycles_per_device"]
    rows = [(part, 1e3 * cycles / plan["clock"], f"{cycles / total:.0%}") for part, cycles in plan["cycles"].items()]
    rows.append(("all", 1e3 * total / plan["clock"], f"{plan['recomputed_cycles'] / total:.0%} of it recomputed"))
    table = _table(f"compute of a step, ms ({total / 1e6:,.0f} M cycles at {plan['clock'] / 1e9:g} GHz)", rows)
    untimed = ", ".join(f"{count} x {what}" for what, count in plan["untimed"].items())
    return table + (f"\n  without an estimate of the compiler: {untimed}" if untimed else "")


def _communication(plan: dict) -> str:
    lines = [f"communication of a device and step, sent{'times':>24}{'GB':>9}{'ms':>8}{'not hidden':>12}"]
    for row in plan["communication"]:
        if row["bytes"] < 1e6:
            continue
        what = f"{row['kind']}, {'asynchronous' if row['asynchronous'] else 'synchronous'}"
        lines.append(
            f"  {row['axes']:<16}{what:<40}{row['times']:>6}{row['bytes'] / GB:>9.3f}{1e3 * row['seconds']:>8.1f}"
            f"{1e3 * row['exposed_seconds']:>12.1f}"
        )
    lines.append(
        f"  {'all':<16}{'':<46}{plan['communication_bytes_per_device'] / GB:>9.3f}{'':>8}"
        f"{1e3 * plan['exposed_seconds']:>12.1f}"
    )
    return "\n".join(lines)


def _step(plan: dict) -> str:
    rows = [("useful TFLOPs", plan["useful_flops"] / 1e12, "")]
    if "step_seconds" in plan:
        assumed = "" if plan["how"] == "compiled" else "assumed"
        rows += [
            ("estimated ms", 1e3 * plan["step_seconds"], ""),
            ("MFU, %", 100 * plan["mfu"], assumed),
            ("tokens/s", plan["tokens_per_second"], ""),
        ]
    return _table("a step", rows)


def _target(plan: dict, target: dict) -> str:
    rows = [("EFLOPs", target["eflops"], "")]
    if "days" in target:
        rows += [("days", target["days"], ""), ("chip-hours", target["chip_hours"], "")]
    size = f"{target['checkpoints']} checkpoints of {plan['checkpoint_bytes'] / GB:.3g} GB"
    rows.append(("GB of storage", target["storage_bytes"] / GB, size))
    return _table(f"to step {target['steps']:,}", rows)


def _table(title: str, rows: list[tuple[str, float, str]]) -> str:
    """Rows of (label, number, remark)."""
    lines = (f"  {label:<34}{_shown(value):>12}  {note}".rstrip() for label, value, note in rows)
    return "\n".join([title, *lines])


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
