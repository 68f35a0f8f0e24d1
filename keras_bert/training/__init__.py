"""Training: one step, the loop around it, and fine-tuning.

`step` computes, reduces and applies gradients, however a batch is cut; `doors` are where a trick changes a step; `loop`
evaluates, saves and resumes; `finetune` feeds labelled rows; `states` stores the states of a run, `memory` estimates
what a step needs. A new optimizer or schedule is one class or function and one row in `optimizers`, a new way of
ascent one row in `doors.ASCENTS`.
"""

from keras_bert.rooms import exported

__getattr__, __dir__ = exported(
    __name__,
    {
        "step": "Trainer Task",
        "doors": "ASCENTS Doors ExtraLoss Pass",
        "loop": "Rounds Keeping Judge",
        "finetune": "fit Result",
        "hardware": "find",
        "memory": "Plan",
        "states": "States",
    },
)
