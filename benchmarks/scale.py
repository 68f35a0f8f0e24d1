"""What pretraining costs at scale: the recipe of the paper on paper, from the FLOP formula and measured shares of peak.

    python benchmarks/scale.py

Question: how long do BERT-base and BERT-large take with the recipe of Devlin et al. 2019 (256 rows, 1,000,000 steps, of
which 90 % have 128 tokens and 10 % have 512) on some devices? The step's arithmetic is counted exactly; the share of a
device's peak that a training reaches is an assumption, printed beside the figures, and is varied.

No GPU or TPU was measured by this script: the table scales with the share that you measure on yours.
"""

from dataclasses import dataclass

from report import table, write_section

ROWS, STEPS, LONG, SHORT, LONG_SHARE, PREDICTED = 256, 1_000_000, 512, 128, 0.1, 0.15
SHARES = (0.3, 0.45)
"""Shares of the bf16 peak: what plain and what well-tuned trainings of this shape reach."""

PEAKS = {"NVIDIA A100": 312e12, "NVIDIA H100": 989e12, "TPU v5e": 197e12}
"""Dense bf16 products of one device, in FLOP/s, as their makers give them."""


@dataclass(frozen=True)
class Shape:
    layers: int
    hidden: int
    vocab: int = 30522

    def flops(self, length: int) -> float:
        """Of one token in one training step: forward, and twice that backward; products only.

        A layer: query, key, value and output 4 h^2, the feed-forward 8 h^2, attention 2 n h; the vocabulary and the
        transform before it for the predicted tokens alone. Each multiply-add counts 2.
        """
        layer = 12 * self.hidden**2 + 2 * length * self.hidden
        head = PREDICTED * (self.hidden**2 + self.hidden * self.vocab)
        return 3 * 2 * (self.layers * layer + head)


SHAPES = {"base": Shape(12, 768), "large": Shape(24, 1024)}


def total(shape: Shape) -> float:
    """FLOP of the whole recipe."""
    return sum(
        ROWS * length * STEPS * share * shape.flops(length)
        for length, share in ((SHORT, 1 - LONG_SHARE), (LONG, LONG_SHARE))
    )


def days(seconds: float) -> str:
    return f"{seconds / 86400:.1f} d" if seconds >= 86400 else f"{seconds / 3600:.1f} h"


def main() -> None:
    rows = []
    for name, shape in SHAPES.items():
        for device, peak in PEAKS.items():
            cells = [
                f"{days(total(shape) / peak / SHARES[1] / n)} to {days(total(shape) / peak / SHARES[0] / n)}"
                for n in (1, 8, 64)
            ]
            rows.append([name, f"{total(shape):.2e}", device, *cells])
    body = (
        "`python benchmarks/scale.py`: BERT with the recipe of the paper (256 rows, 1,000,000 steps, 90 % with 128 "
        f"tokens, 10 % with 512), at {SHARES[0]:.0%} to {SHARES[1]:.0%} of the bf16 peak. Counted, not "
        "measured: the share is an assumption, and so is that many devices scale evenly.\n\n"
        + table(["size", "FLOP", "device", "1", "8", "64"], rows)
    )
    write_section("Pretraining at scale, on paper", body)
    print(body)


if __name__ == "__main__":
    main()
