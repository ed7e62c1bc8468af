"""The commands of `sat-ssvae`, one module each.

A module offers `add(commands)`, which adds its parser to the `sat-ssvae` one and sets `run`, a function of the parsed
options. What a command needs beyond the standard library is imported when it runs, so that `--help` is quick.
"""
