"""The commands of `sat-ssvae`, one module each.

A module offers `add(commands)`, which adds its parser to the `sat-ssvae` one and sets `run`, a function of the parsed
options. Imports beyond the standard library are made when a command runs, so that `--help` is quick.
"""
