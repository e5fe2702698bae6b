"""Why there is no plan, as the user wrote the budgets: a throughput in tokens per second, whatever was solved for."""

import math
from dataclasses import replace

from blockwright.cost import UNIT_OF
from blockwright.search.build import Order, decision_of
from blockwright.search.explain import Clash, Move
from blockwright.units import format_quantity


def inverse_texts(order: Order) -> list[str]:
    """The budgets whose limits are on one over what was asked for."""
    return [budget.text for budget in order.budgets if budget.quantity == "throughput"]


def in_own_units(clash: Clash, order: Order) -> Clash:
    """The clash with moves of throughputs turned back from the latencies that were solved for."""
    inverse = inverse_texts(order)
    return replace(
        clash, moves=tuple(_as_throughput(move, order) if move.text in inverse else move for move in clash.moves)
    )


def clash_words(clash: Clash, order: Order) -> list[str]:
    """A clash in the budgets' own units as sentences; what is not proven is not put as a fact."""
    short = [move for move in clash.moves if _is_short(move)]
    words = [
        f"{move.text}: {_asked(move, order)}the {'most' if move.is_least else 'least'} that any child "
        f"{_verb(move, order)} is {_show(move, move.alone, order)}"
        for move in short
    ]
    if not words:
        words.append(_together(clash))
    for move in clash.moves:
        others = "with the others kept, " if len(clash.moves) > 1 else ""
        if move.text in (clash.clashing or (move.text,)) and (sentence := _move_words(move, order, others)):
            words.append(sentence)
    if clash.loosening is not None:
        subject = clash.moves[0].text if len(clash.moves) == 1 else "all budgets"
        all_of_them = f"{subject} loosened by {_percent(clash.loosening)} would fit"
        words.append(all_of_them + ("" if clash.is_least_loosening else " (whether less would is not proven in time)"))
    elif not clash.is_least_loosening:
        what = "all budgets must be loosened together" if len(clash.moves) > 1 else "it must be loosened"
        words.append(f"by how much {what} was not found out in time")
    return words


def _as_throughput(move: Move, order: Order) -> Move:
    budget = next(budget for budget in order.budgets if budget.text == move.text)
    batch = move.at.get(decision_of(budget.load, budget.device))
    loads = order.loads[budget.load]
    load = next((load for load in loads if str(load.batch) == batch), loads[0])
    tokens = load.batch * load.new_tokens

    def turned(latency_s: float | None) -> float | None:
        return None if latency_s is None or latency_s <= 0 else tokens / latency_s

    return replace(
        move,
        limit=tokens / move.limit,
        is_least=not move.is_least,
        alone=turned(move.alone),
        needed=turned(move.needed),
        bound=turned(move.bound),
    )


def _is_short(move: Move) -> bool:
    if move.alone is None:
        return False
    return move.alone < move.limit if move.is_least else move.alone > move.limit


def _together(clash: Clash) -> str:
    asked = [move.text for move in clash.moves]
    budgets = [text for text in clash.clashing if text in asked]
    rules = [f"the rule '{text}'" for text in clash.clashing if text not in asked]
    if not clash.clashing:
        return "which budgets clash was not found out in time; they are " + "; ".join(m.text for m in clash.moves)
    if len(clash.clashing) == 1:
        return f"no child that keeps the rules meets {clash.clashing[0]}" if budgets else f"no child keeps {rules[0]}"
    together = "; ".join([*budgets, *rules])
    if clash.is_smallest:
        return f"each alone can be met, but not all together: {together}"
    return f"not all together can be met: {together} (whether fewer clash was not found out in time)"


def _move_words(move: Move, order: Order, others: str) -> str:
    would = f"{others}{move.text} would have to be"
    if move.needed is None:
        return "" if move.is_proven else f"{would} moved, how far was not found out in time"
    needed = _show(move, move.needed, order)
    if move.is_proven:
        return f"{would} {needed}"
    end = "" if move.bound is None else f"{'most' if move.is_least else 'least'} {_show(move, move.bound, order)}"
    return f"{would} at {end}, not proven in time; {needed} would do" if end else f"{needed} would do for {move.text}"


def _asked(move: Move, order: Order) -> str:
    """What a share comes to; an amount stands in the budget's text as the user wrote it."""
    budget = next((budget for budget in order.budgets if budget.text == move.text), None)
    amounts = () if budget is None else (budget.least, budget.most)
    if all(amount is None or amount.share is None for amount in amounts):
        return ""
    return f"{'asks for' if move.is_least else 'allows'} {_show(move, move.limit, order)}, "


def _verb(move: Move, order: Order) -> str:
    return "reaches" if move.text in inverse_texts(order) else "costs"


def _show(move: Move, amount: float | None, order: Order) -> str:
    if amount is None:
        return "unknown"
    budget = next((budget for budget in order.budgets if budget.text == move.text), None)
    if budget is None:
        return f"{amount:.4g}"
    return format_quantity(amount, UNIT_OF[budget.quantity], is_binary="iB" in budget.text)


def _percent(share: float) -> str:
    """With two digits, rounded up: so much is enough."""
    digits = 10.0 ** (math.floor(math.log10(100 * share)) - 1)
    rounded = math.ceil(100 * share / digits - 1e-9) * digits
    return f"{rounded:.0f} %" if digits >= 1 else f"{rounded:.2g} %"
