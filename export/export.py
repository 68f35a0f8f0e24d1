"""From a run directory to a SavedModel that takes strings: the command `keras-bert export` as a script.

    python export/export.py --model_dir=runs/tweets --export_dir=models/tweets

`python export/export.py --help` lists the flags.
"""

import sys

from keras_bert.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
