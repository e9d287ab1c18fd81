"""What `harness profile` says of operations: counts, what was not counted, gaps between counters, the modules."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.cli.output import console, format_number, messages, print_table
from harness.core.errors import UserError
from harness.core.records import CounterGap, OperationsRecord, UncountedOperator
from harness.core.units import format_count
from harness.profiling import AGREEMENT, Target, canonical_macs, count_onnx, count_operations

_MOST_LISTED = 5  # modules and operators that a line names; JSON has them all


@dataclass(frozen=True)
class Operations:
    """What one forward pass of a target costs. `macs` is None where they cannot be counted, `note` says why.

    `params` is None where a file does not tell them from other constants.
    `record` holds all that the counters found; None for ONNX files, whose graph is counted instead.
    """

    macs: int | None
    params: int | None
    activations: int | None
    operators: tuple[UncountedOperator, ...]
    record: OperationsRecord | None
    note: str | None = None

    def document(self) -> dict[str, Any]:
        """Return what the JSON document says of operations."""
        record = self.record
        return {
            "params": self.params,
            "macs": self.macs,
            "macs_note": self.note,
            "macs_by_counter": record.by_counter if record else {},
            "macs_are_lower_bound": record.is_lower_bound if record else False,
            "activations": self.activations,
            "counters_agree": record.agree if record else None,
            "counters_disagreement": record.max_disagreement if record else None,
            "counters_missing": record.missing if record else {},
            "counter_gaps": [gap.model_dump(mode="json") for gap in record.gaps] if record else [],
            "uncounted_operators": [operator.model_dump(mode="json") for operator in self.operators],
            "modules": [module.model_dump(mode="json") for module in record.modules] if record else [],
        }

    def rows(self) -> list[list[str]]:
        """Return the rows of the table."""
        bound = "≥ " if self.record is not None and self.record.is_lower_bound else ""
        rows = [
            ["parameters" if self.record is not None else "constants in the file", _count(self.params)],
            ["activations (NTIRE)", _count(self.activations)],
            ["MACs (canonical)", "not counted" if self.macs is None else bound + format_count(self.macs)],
        ]
        if self.record is not None:
            rows += [[f"  by {name}", format_count(count)] for name, count in self.record.by_counter.items()]
        return rows


def count_target(target: Target, input_BCHW: Any, shares: list[float] | None, *, allow_gap: bool) -> Operations:
    """Count the operations of a target for one input; a gap that nothing explains is a `UserError` unless allowed."""
    if target.module is None:
        assert target.spec.path is not None
        counted = count_onnx(target.spec.path, target.name, tuple(input_BCHW.shape))
        if counted.reason is not None:
            messages.print(f"note: operations are not counted: {counted.reason}", markup=False)
        return Operations(counted.macs, counted.params, counted.activations, counted.operators, None, counted.reason)
    config = target.spec.config
    record = count_operations(target.module, input_BCHW, config=config, attention_share=shares)
    _judge(target.name, record, allow_gap=allow_gap)
    macs = record.macs if config is None else canonical_macs(config, record.input_size, attention_share=shares)
    params: int | None = record.params
    if target.spec.kind == "torchscript" and params == 0:
        messages.print("note: parameters are not counted: TorchScript that is frozen holds them as constants")
        params = None
    return Operations(macs, params, record.activations, record.operators, record)


def print_uncounted(operators: Sequence[UncountedOperator]) -> None:
    """Print what was not counted, with its share."""
    if not operators:
        return
    texts = [
        f"{operator.operator} ×{operator.times} ({'unknown' if operator.share is None else f'{operator.share:.1%}'})"
        for operator in operators[:_MOST_LISTED]
    ]
    rest = sum(operator.share or 0.0 for operator in operators[_MOST_LISTED:])
    more = f", {len(operators) - _MOST_LISTED} more ({rest:.1%})" if len(operators) > _MOST_LISTED else ""
    console.print(
        f"Not counted, with their share if each element cost one operation: {', '.join(texts)}{more}", markup=False
    )


def print_tree(record: OperationsRecord, depth: int | None) -> None:
    """Print the modules down to `depth` levels below the network (None: all), each with what is inside it."""
    modules = record.modules
    whole = modules[0].macs
    rows = []
    for module in modules:
        level = module.path.count(".") + 1 if module.path else 0
        if depth is not None and level > depth:
            continue
        name = f"{'  ' * level}{module.path.rpartition('.')[2] or '(network)'}  {module.type}"
        counts = set(module.macs_by_counter.values())
        note = (
            "" if len(counts) == 1 else ", ".join(f"{n} {format_count(c)}" for n, c in module.macs_by_counter.items())
        )
        share = format_number(100 * module.macs / whole, 1) if whole else "–"
        numbers = [format_count(number) for number in (module.macs, module.params, module.activations)]
        rows.append([name, numbers[0], share, *numbers[1:], note])
    columns = ["module", "MACs", "%", "parameters", "activations", "counters that differ"]
    print_table("Modules, each with those inside it", columns, rows)
    if modules[0].activations != record.activations:
        console.print("Activations are here those of the convolutions that ran: pointwise layers ran as linear maps.")


def _judge(name: str, record: OperationsRecord, *, allow_gap: bool) -> None:
    """Warn of what was not seen; refuse a gap between counters that nothing explains."""
    for counter, reason in record.missing.items():
        messages.print(f"note: not counted by {counter}: {reason}", markup=False)
    if record.is_lower_bound:
        hidden = [entry for entry in record.operators if set(entry.hidden_from) >= set(record.counters)]
        names = ", ".join(entry.operator for entry in hidden if entry.share is None)
        messages.print(f"warning: no counter can look into {names}: the MACs are a lower bound", markup=False)
    if record.agree:
        return
    text = describe_gaps(name, record)
    if record.unexplained_share <= AGREEMENT or allow_gap:
        messages.print(f"warning: {text}; MACs are the highest count", markup=False)
        return
    raise UserError(f"{text}; --allow-gap goes on with the highest count")


def describe_gaps(name: str, record: OperationsRecord) -> str:
    """Say by how much the counters differ, in which modules, and which operators explain it."""
    unexplained = record.unexplained if record.unexplained_share > AGREEMENT else ()
    gaps = unexplained or record.gaps
    listed = "; ".join(_describe_gap(gap) for gap in gaps[:_MOST_LISTED])
    more = f"; {len(gaps) - _MOST_LISTED} more" if len(gaps) > _MOST_LISTED else ""
    because = (
        "no uncounted operator explains it, so values must take a way around some counter (.data, .numpy(), .tolist())"
        if unexplained
        else "as operators explain that some cannot look into"
    )
    return f"{name}: the counters differ by {record.max_disagreement:.1%}, and {because}: {listed}{more}"


def _describe_gap(gap: CounterGap) -> str:
    counts = ", ".join(f"{counter} {format_count(macs)}" for counter, macs in gap.macs_by_counter.items())
    why = f" ({', '.join(gap.explained_by)})" if gap.explained_by else ""
    return f"{gap.path or 'the network itself'} ({gap.type}): {counts}{why}"


def _count(value: int | None) -> str:
    return "–" if value is None else format_count(value)
