"""What a small search is ordered with."""

from collections.abc import Callable

from blockwright.cost import Load
from blockwright.search.build import Order
from blockwright.search.scores import ScoreTable

LOAD = Load(batch=1, prompt_tokens=40, new_tokens=24)
MakeOrder = Callable[..., Order]
MakeTable = Callable[..., ScoreTable]
