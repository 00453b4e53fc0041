"""Errors that a user can cause, each one sentence with a way out.

Raise these for anything that input, configuration or the machine can bring about; the command line prints the
message and exits with code 2. What cannot happen is an `assert`.
"""


class UserError(Exception):
    """What was given, what was expected, and a way out; all offenders at once."""


class ConfigError(UserError):
    """A setting that is unknown, contradictory or without effect; an output folder that cannot be used."""


class DataError(UserError):
    """Text, tables or saved arrays that are missing, malformed or not what a step needs."""


class ModelError(UserError):
    """A model that cannot be loaded, probed or changed as asked."""
