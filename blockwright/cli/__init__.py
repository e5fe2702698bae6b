"""The command line: a module per sub-command, which imports its room only when it runs."""
