"""The errors that a user can cause; the command line prints them as one line and exits with status 2."""


class UserError(ValueError):
    """What must hold, what came, what to do: one sentence."""


class ConfigError(UserError):
    """A setting, an argument or a plan that cannot work."""


class DataError(UserError):
    """A file or an array that is missing, damaged or of the wrong form."""
