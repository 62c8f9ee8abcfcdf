"""What a command tells its user in one line."""


class UserError(Exception):
    """Bad input, in one line that says how to fix it."""
