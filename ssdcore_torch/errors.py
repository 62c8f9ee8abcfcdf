"""What a command tells its user in one line."""


class UserError(Exception):
    """Bad input, in one line that says how to fix it."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory, of a device or of this machine."""
    if isinstance(error, MemoryError):
        return True
    words = ("out of memory", "can't allocate memory", "not enough memory", "Storage size calculation overflowed")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
