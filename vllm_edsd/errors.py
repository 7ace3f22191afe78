"""The one exception that a user's mistake raises."""


class UserError(Exception):
    """A mistake of the user's: names the thing, its value and the remedy; printed without a traceback."""
