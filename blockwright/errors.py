"""The one error for input that a user can mend."""


class InputError(ValueError):
    """Input that cannot be used as it is.

    Args:
        field: what was read: a key of the recipe, a flag, a file.
        got: what stood there.
        expected: what may stand there.
        remedy: what to do about it.
    """

    def __init__(self, field: str, *, got: object, expected: str, remedy: str) -> None:
        self.field = field
        self.got = got
        self.expected = expected
        self.remedy = remedy
        super().__init__(f"{field}: got {got}; expected {expected}. {remedy}")
