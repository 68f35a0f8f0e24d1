"""Pretraining, from raw text to a checkpoint.

`documents` -> `pairs` -> `corpus` write texts as shards; `reader` gives any batch by its number, `rows` and `masking`
make masked batches of it; `columns` says what may stand beside a token or a row on that way; `objectives` are heads and
losses, `run` the run, `ablate` compares runs. A new mask unit, replacement, pair, column or objective is one function
or class and one row in `UNITS`, `REPLACEMENTS`, `PAIRS`, `COLUMNS`, `OBJECTIVES`.
"""
