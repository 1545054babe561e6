"""What PostgreSQL is to leave out of its log: statements, and the values in them.

A statement that fails is logged with what people said: the text of a memory, an email address, the
hash of a password; and there it stays when they are erased. `setup_database` sets these for the
roles that sign in, the embedded server for everybody.
"""

from collections.abc import Mapping

# "invalid input syntax for type uuid: ..." quotes the value: of these roles no error is logged.
# (`log` ranks above `error` here. The caller is told, and AgentMem logs its own failures.)
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
    "log_duration": {"on"},  # it tells how long, not what
}
ASKED = "SELECT " + ", ".join(f"current_setting('{name}')" for name in QUIET)


def loud(shown: Mapping[str, str]) -> list[str]:
    """The settings, as `name = value`, by which the log may hold statements or values."""
    return [
        f"{name} = {shown[name]}"
        for name, quiet in QUIET.items()
        if shown[name] not in {quiet, *_ALSO_QUIET.get(name, ())}
    ]
