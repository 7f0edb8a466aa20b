from collections.abc import Mapping, Sequence
from typing import Self, final

DICE: int
MOST_RULES: int

@final
class Rulebook:
    def __new__(cls, rules: Sequence[Mapping[str, int]], before: Rulebook | None = None) -> Self: ...
    def fired(self) -> list[int]: ...
