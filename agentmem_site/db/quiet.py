"""Settings that keep statements, and the values in them, out of PostgreSQL's log.

By default a failed statement is logged with its data: the text of a memory, an email address, the
hash of a password. It stays there when a person is erased. `setup_database` sets these for the
roles that sign in, the embedded server for all.
"""

from collections.abc import Mapping

# "invalid input syntax for type uuid: ..." quotes the value, so no errors of these roles are
# logged. (`log` ranks above `error` here. The caller gets the error, and AgentMem logs it.)
ERRORS = {"log_min_messages": "log"}
VALUES = {
    "log_min_error_statement": "panic",  # no STATEMENT
    "log_error_verbosity": "terse",  # no DETAIL: Key (email)=(...); no CONTEXT: COPY ..., line 1
    "log_statement": "none",
    "log_duration": "off",
    "log_min_duration_statement": "-1",
    "log_min_duration_sample": "-1",
    "log_transaction_sample_rate": "0",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    "debug_print_parse": "off",
    "debug_print_rewritten": "off",
    "debug_print_plan": "off",
}
QUIET = ERRORS | VALUES

_ALSO_QUIET = {
    "log_min_messages": {"fatal", "panic"},
    "log_duration": {"on"},  # it logs how long, not what
}
CURRENT_SETTINGS = "SELECT " + ", ".join(f"current_setting('{name}')" for name in QUIET)


def loud(shown: Mapping[str, str]) -> list[str]:
    """The settings, as `name = value`, that let statements or values into the log."""
    return [
        f"{name} = {shown[name]}"
        for name, quiet in QUIET.items()
        if shown[name] not in {quiet, *_ALSO_QUIET.get(name, ())}
    ]
