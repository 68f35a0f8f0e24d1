"""Pretraining: text to rows of ids, masks and sentence pairs drawn from them, and the losses that they ask for."""
