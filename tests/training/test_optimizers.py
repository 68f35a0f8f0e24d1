"""The optimizer and its schedule: by hand, against NumPy, and (slow) against PyTorch's AdamW."""

import dataclasses

import checks
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY

from keras_bert.config import HeadConfig, OptimizerConfig
from keras_bert.errors import ConfigError
from keras_bert.tasks.network import Network
from keras_bert.training.optimizers import AdamW, Lamb, WarmUp, layer_rates, schedule

# === Schedule ===


def rates(schedule, steps):
    return [float(schedule(step)) for step in steps]


def test_schedule_by_hand():
    # peak 8, 4 steps up, 8 steps down, of 12
    schedule = WarmUp(8.0, total_steps=12, warmup_steps=4)
    wanted = [2, 4, 6, 8, 8, 7, 6, 5, 4, 3, 2, 1]
    assert rates(schedule, range(12)) == pytest.approx(wanted)
    assert rates(schedule, [12, 13, 1000]) == [0, 0, 0], "past the end there is nothing left"


def test_schedule_without_warm_up():
    assert rates(WarmUp(1.0, total_steps=4), range(5)) == pytest.approx([1, 0.75, 0.5, 0.25, 0])


def test_schedule_of_warm_up_only():
    assert rates(WarmUp(1.0, 2, warmup_steps=2), range(3)) == pytest.approx([0.5, 1, 0])


@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (1, 1), (7, 1), (1000, 100), (1_000_000, 10_000)])
def test_no_step_has_a_rate_of_zero_or_above_the_peak(total, warmup):
    steps = sorted({0, 1, warmup - 1, warmup, warmup + 1, total // 2, total - 1} & set(range(total)))
    got = rates(WarmUp(5e-5, total, warmup), steps)
    assert min(got) > 0
    assert max(got) <= 5e-5 * (1 + 1e-6)


def test_schedule_in_a_graph_and_from_its_config():
    schedule = WarmUp(8.0, total_steps=12, warmup_steps=4)
    again = WarmUp.from_config(schedule.get_config())
    step = tf.Variable(5, dtype=tf.int64)
    assert float(tf.function(lambda: again(step))()) == pytest.approx(7)


@pytest.mark.parametrize(
    ("decay", "power", "wanted"),
    [
        ("linear", 1.0, [4, 8, 8, 6, 4, 2]),
        ("polynomial", 2.0, [4, 8, 8, 4.5, 2, 0.5]),
        ("cosine", 1.0, [4, 8, 8, 8 * (2 + 2**0.5) / 4, 4, 8 * (2 - 2**0.5) / 4]),
        ("constant", 1.0, [4, 8, 8, 8, 8, 8]),
    ],
)
def test_decays_by_hand(decay, power, wanted):
    assert rates(WarmUp(8.0, 6, 2, decay, power), range(6)) == pytest.approx(wanted)


def test_schedule_of_the_settings():
    assert schedule(OptimizerConfig(warmup_proportion=0.1), 50).warmup_steps == 5
    assert schedule(OptimizerConfig(warmup_proportion=0.1, num_warmup_steps=7), 50).warmup_steps == 7
    assert schedule(OptimizerConfig(num_warmup_steps=0), 50).warmup_steps == 0
    with pytest.raises(ConfigError, match="num_warmup_steps 51 is more than the 50 steps"):
        schedule(OptimizerConfig(num_warmup_steps=51), 50)


# === Steps ===


def adamw_in_numpy(value, gradients, rate_of, decay, beta_1=0.9, beta_2=0.999, epsilon=1e-6):
    """Algorithm 2 of Loshchilov & Hutter 2019, in float64; the rate multiplies the decay, as everywhere since."""
    value = value.astype("float64")
    first, second = np.zeros_like(value), np.zeros_like(value)
    for t, gradient in enumerate(gradients, start=1):
        first = beta_1 * first + (1 - beta_1) * gradient
        second = beta_2 * second + (1 - beta_2) * gradient**2
        step = first / (1 - beta_1**t) / (np.sqrt(second / (1 - beta_2**t)) + epsilon)
        value = value - rate_of(t - 1) * (step + decay * value)
    return value


def variable(value, name="kernel"):
    return keras.Variable(np.asarray(value, "float32"), name=name)


def test_first_step_by_hand():
    # The first step is the sign of the gradient, whatever its size; then decay: 1 - 0.1 * (1 + 0.5 * 1)
    weights = variable([1.0, 1.0, 1.0])
    optimizer = AdamW(0.1, OptimizerConfig(weight_decay=0.5, epsilon=1e-9))
    optimizer.apply([tf.constant([3.0, -0.01, 0.0])], [weights])
    np.testing.assert_allclose(weights.numpy(), [0.85, 1.05, 0.95], atol=1e-6)
    assert int(optimizer.iterations.numpy()) == 1


@pytest.mark.parametrize("traced", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("scheduled", [False, True], ids=["rate", "schedule"])
def test_equals_a_loop_in_numpy(traced, scheduled):
    random = np.random.default_rng(0)
    start = random.normal(size=(3, 5)).astype("float32")
    gradients = [random.normal(size=(3, 5)).astype("float32") * 10.0 ** random.integers(-4, 3) for _ in range(20)]
    config = OptimizerConfig(weight_decay=0.05, beta_1=0.8, beta_2=0.99, epsilon=1e-4)
    schedule = WarmUp(0.02, total_steps=20, warmup_steps=5)
    optimizer = AdamW(schedule if scheduled else 0.01, config)
    weights = variable(start)
    optimizer.build([weights])
    apply = tf.function(lambda g: optimizer.apply([g])) if traced else lambda g: optimizer.apply([g])
    for gradient in gradients:
        apply(tf.constant(gradient))
    rate_of = (lambda step: float(schedule(step))) if scheduled else (lambda step: 0.01)
    wanted = adamw_in_numpy(start, gradients, rate_of, 0.05, 0.8, 0.99, 1e-4)
    assert np.abs(wanted - start).max() > 0.05
    np.testing.assert_allclose(weights.numpy(), wanted, rtol=0, atol=1e-6)


def test_lamb_equals_a_loop_in_numpy():
    """You et al. 2020, algorithm 2: the change has the size of the weight; biases do not decay and are not scaled."""
    random = np.random.default_rng(0)
    values = {"kernel": random.normal(size=(3, 5)), "bias": random.normal(size=(5,))}
    ours = {name: variable(value, name) for name, value in values.items()}
    optimizer = Lamb(0.01, OptimizerConfig(weight_decay=0.1))
    optimizer.build(list(ours.values()))
    moments = {name: np.zeros((2, *value.shape)) for name, value in values.items()}
    for t in range(1, 11):
        gradients = {name: random.normal(size=value.shape) for name, value in values.items()}
        optimizer.apply([tf.constant(g, tf.float32) for g in gradients.values()])
        for name, gradient in gradients.items():
            m, v = moments[name]
            m[:], v[:] = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            step = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-6)
            if name == "kernel":
                step = step + 0.1 * values[name]
                step = step * np.linalg.norm(values[name]) / np.linalg.norm(step)
            values[name] = values[name] - 0.01 * step
    for name, value in values.items():
        np.testing.assert_allclose(ours[name].numpy(), value, rtol=0, atol=2e-6)


def test_the_average_forgets_the_start():
    """Its decay is min(0.9, (1 + t) / (10 + t)) before step t, counted from 0."""
    weights, optimizer = variable([1.0]), AdamW(0.1, OptimizerConfig(weight_decay=0, ema_decay=0.9))
    optimizer.build([weights])
    wanted = 1.0
    for t in range(12):
        optimizer.apply([tf.constant([1.0])])
        decay = min(0.9, (1 + t) / (10 + t))
        wanted = decay * wanted + (1 - decay) * float(weights.numpy()[0])
    assert float(optimizer.averages[0].numpy()[0]) == pytest.approx(wanted, abs=1e-6)


def test_rates_shrink_towards_the_input():
    network = Network(TINY, HeadConfig(labels=("0", "1")))
    optimizer = AdamW(1.0, rate_rules=layer_rates(TINY, 0.5))
    optimizer.build(network.trainable_variables)
    found = {v.path: rate for v, rate in zip(network.trainable_variables, optimizer.rates, strict=True)}
    wanted = {"head/logits/kernel": 1.0, "encoder/block_1/": 0.5, "encoder/block_0/": 0.25, "encoder/tokens": 0.125}
    for path, rate in wanted.items():
        assert {r for p, r in found.items() if path in p} == {rate}
    assert set(found.values()) == set(wanted.values())


@pytest.mark.slow
def test_equals_pytorch():
    torch = pytest.importorskip("torch", reason="torch is not installed (make proofs installs it)")
    random = np.random.default_rng(1)
    start = random.normal(size=(7, 5)).astype("float32")
    gradients = [random.normal(size=start.shape).astype("float32") for _ in range(20)]
    config = OptimizerConfig()
    # In float64, so that the difference is ours: its own float32 is 1.1e-6 from it, Keras's AdamW 1.7e-5.
    theirs = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
    peer = torch.optim.AdamW([theirs], lr=1e-2, weight_decay=config.weight_decay, eps=config.epsilon)
    ours, optimizer = variable(start), AdamW(1e-2, config)
    worst = 0.0
    for gradient in gradients:
        theirs.grad = torch.tensor(gradient, dtype=torch.float64)
        peer.step()
        optimizer.apply([tf.constant(gradient)], [ours])
        worst = max(worst, float(np.abs(ours.numpy() - theirs.detach().numpy()).max()))
    print(f"AdamW against torch.optim.AdamW, 20 steps: max difference {worst:.2e}")
    assert np.abs(ours.numpy() - start).max() > 0.05
    assert worst <= 1e-6


# === Rules ===


@pytest.fixture
def network():
    return checks.randomize(Network(TINY, HeadConfig(labels=("a", "b"))))


def step(network, optimizer, zero=False):
    """One step on a real network: {path: (before, after)}."""
    before = {w.path: w.numpy() for w in network.trainable_weights}
    with tf.GradientTape() as tape:
        labels = tf.constant([0, 1])
        loss = tf.reduce_sum(network.head.loss(labels, network(checks.features([6, 3]))))
    gradients = tape.gradient(loss, [w.value for w in network.trainable_weights])
    if zero:
        gradients = [tf.zeros(w.shape) for w in network.trainable_weights]
    optimizer.apply(gradients, network.trainable_weights)
    return {w.path: (before[w.path], w.numpy()) for w in network.trainable_weights}


def test_which_weights_of_a_network_decay(network):
    """Without a gradient only decay is left: kernels and tables shrink by rate * decay, the rest stays."""
    optimizer = AdamW(0.5, OptimizerConfig(weight_decay=0.01))
    decayed = set()
    for path, (before, after) in step(network, optimizer, zero=True).items():
        if (before == after).all():
            continue
        np.testing.assert_allclose(after, before * 0.995, rtol=1e-6, err_msg=path)
        decayed.add(path)
    kept = {w.path for w in network.trainable_weights} - decayed
    assert {path.rsplit("/", 1)[-1] for path in decayed} == {"kernel", "embeddings"}
    assert {path.rsplit("/", 1)[-1] for path in kept} == {"bias", "gamma", "beta"}
    assert len(decayed) == 3 + 2 * 6 + 2
    assert len(kept) == 2 + 2 * (6 + 4) + 2


def test_gradients_of_the_tables_may_be_sparse(network):
    """TensorFlow hands the gradient of a looked-up table over as the rows that were read, one read twice here."""
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(network({"token_ids": np.array([[2, 7, 8, 7, 3]])}))
    table = network.encoder.tokens.embeddings
    gradient = tape.gradient(loss, table.value)
    assert gradient.indices.numpy().tolist() == [2, 7, 8, 7, 3]
    dense = tf.convert_to_tensor(gradient).numpy()
    start = table.numpy()
    optimizer = AdamW(0.01, OptimizerConfig(weight_decay=0.0))
    optimizer.apply([gradient], [table])
    np.testing.assert_allclose(table.numpy(), adamw_in_numpy(start, [dense], lambda _: 0.01, 0.0), atol=1e-6)
    assert (table.numpy()[dense.any(-1)] != start[dense.any(-1)]).any()


def test_rate_rules_scale_the_step(network):
    rules = [("^encoder/", 0.1), (".*", 1.0)]
    config = OptimizerConfig(weight_decay=0.01)
    whole = step(network, AdamW(1e-3, config))
    again = checks.randomize(Network(TINY, HeadConfig(labels=("a", "b"))))
    ruled = step(again, AdamW(1e-3, config, rate_rules=rules))
    for path, (before, after) in ruled.items():
        size = 0.1 if path.startswith("encoder/") else 1.0
        np.testing.assert_allclose(after - before, size * (whole[path][1] - before), rtol=0, atol=5e-7, err_msg=path)
        if not path.endswith("key/bias"):
            assert np.abs(after - before).max() > 0.5e-3 * size, path


def test_a_rate_of_zero_freezes(network):
    for path, (before, after) in step(network, AdamW(1e-3, rate_rules=[("^encoder/", 0.0), ("^head/", 1.0)])).items():
        assert (before == after).all() == path.startswith("encoder/"), path


@pytest.mark.parametrize("which", ["decay_rules", "rate_rules"])
def test_a_weight_that_no_rule_covers(network, which):
    optimizer = AdamW(1e-3, **{which: [("^encoder/", 1.0)]})
    for _ in range(2):
        with pytest.raises(ConfigError, match="no rule covers the weight 'head/pooler/dense/kernel'"):
            optimizer.build(network.trainable_variables)
    assert not optimizer.built


def test_decay_rules_are_factors_of_the_decay():
    first, second = variable([1.0], name="first"), variable([1.0], name="second")
    optimizer = AdamW(1.0, OptimizerConfig(weight_decay=0.1), decay_rules=[("first", 0.5), (".*", 2.0)])
    optimizer.apply([tf.zeros(1), tf.zeros(1)], [first, second])
    assert [first.numpy()[0], second.numpy()[0]] == pytest.approx([0.95, 0.8])


@pytest.mark.slow
def test_plain_keras_training_takes_it():
    """`compile` and `fit` of Keras, with a loss of Keras; no dropout, so that every run is the same."""
    still = dataclasses.replace(TINY, hidden_dropout=0.0, attention_dropout=0.0)
    network = checks.randomize(Network(still, HeadConfig(labels=("a", "b"), dropout=0.0)))
    given, labels = checks.features([6, 3, 5, 4]), np.array([0, 1, 0, 1])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(optimizer=AdamW(5e-3), loss=loss, metrics=["accuracy"])
    history = network.fit(given, labels, batch_size=2, epochs=8, verbose=0, shuffle=False).history
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    assert history["accuracy"][-1] == 1.0
    assert int(network.optimizer.iterations.numpy()) == 16


def test_the_config_of_adamw_makes_it_again():
    rules = [("kernel", 0.5), (".*", 0.0)]
    made = AdamW(0.25, OptimizerConfig(weight_decay=0.5), decay_rules=rules, rate_rules=rules)
    again = AdamW.from_config(made.get_config())
    assert again.config == made.config
    assert (again.decay_rules, again.rate_rules) == (rules, rules)
    assert float(again.learning_rate) == 0.25
