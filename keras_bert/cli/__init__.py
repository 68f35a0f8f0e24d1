"""The commands behind `keras-bert`, one module each, with a `main(argv) -> exit code`."""
