"""The commands, one module each: flags, files and messages.

A command is a module with `define` and `main` and one row in `__main__`; it reads flags, asks the rooms below, and says
in one line what is wrong. `flags` makes flags of configs; `one_run` is one fine-tuning, `folds` and `grid` are several.
"""
