"""The one exception that means "the user can fix this": shown as a single line, without a traceback."""


class UserError(ValueError):
    """A mistake in the input, the configuration or the environment. The message says what to do about it."""
