"""Training: one step, the loop around it, and fine-tuning.

`step` reduces, clips and applies, whatever a batch was cut into; `loop` evaluates, saves and goes on after a kill;
`finetune` feeds labelled rows; `optimizers` and `devices` are what they say; `states` keeps runs, `memory` counts
what a step needs. A new optimizer or schedule is one class or function and one row in `optimizers`.
"""

from keras_bert.rooms import exported

__getattr__, __dir__ = exported(
    __name__,
    {
        "step": "Trainer Task",
        "loop": "Rounds Keeping Judge",
        "finetune": "fit Result",
        "hardware": "find",
        "memory": "Plan",
        "states": "States",
    },
)
