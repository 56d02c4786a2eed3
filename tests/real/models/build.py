"""Runs in a real TensorFlow: writes one model for each thing that breaks, as far as this version can make it.

    python build.py FOLDER [NAME...]

Each model has the signature serving_default with the input x, unless its name says otherwise. What a version cannot
build is left out. Prints the names that were written, as JSON.
"""

import json
import shutil
import sys
from pathlib import Path

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

OUT = Path(sys.argv[1])
FLOAT = tf.float32


class Model(tf.Module):
    def __init__(self, dtype=FLOAT, name="w", shape=(4, 3)):
        super().__init__()
        setattr(self, name, tf.Variable(tf.ones(shape, dtype), name=name))


def save(name, function, spec, model=None, key="serving_default"):
    model = model or Model()
    model.serve = tf.function(function, input_signature=[spec])
    tf.saved_model.save(model, str(OUT / name), signatures={key: model.serve})


def rows(shape=(None, 4), dtype=FLOAT):
    return tf.TensorSpec(shape, dtype, name="x")


def plain(name="plain", key="serving_default"):
    model = Model()
    save(name, lambda x: {"y": tf.nn.relu(x @ model.w)}, rows(), model, key)


def conv():
    model = Model()
    model.k = tf.Variable(tf.ones([3, 3, 1, 2]))
    save("conv", lambda x: {"y": tf.nn.conv2d(tf.reshape(x, [-1, 2, 2, 1]), model.k, 1, "SAME")}, rows(), model)


def table():
    model = Model()
    start = tf.lookup.KeyValueTensorInitializer(tf.constant(["a", "b"]), tf.constant([1.0, 2.0]))
    model.table = tf.lookup.StaticHashTable(start, -1.0)
    save("table", lambda x: {"y": x + model.table.lookup(tf.as_string(tf.cast(x, tf.int32)))}, rows(), model)


def mapped():
    save("mapped", lambda x: {"y": tf.map_fn(lambda one: tf.while_loop(lambda v: tf.reduce_sum(v) < 9.0,
         lambda v: (v + 1.0,), (one,))[0], x)}, rows())  # fmt: skip


def keras():
    given = tf.keras.Input((4, 1))
    model = tf.keras.Model(given, tf.keras.layers.Dense(2)(tf.keras.layers.LSTM(3)(given)))
    if hasattr(model, "export"):
        model.export(str(OUT / "keras"))
    else:
        tf.saved_model.save(model, str(OUT / "keras"))


def keras_file():
    tf.keras.Sequential([tf.keras.Input((4,)), tf.keras.layers.Dense(3)]).save(str(OUT / "archive.keras"))


def new_op():
    # 2.13 has it with a kernel for CPU, 2.12 has it not.
    def serve(x):
        filled = tf.raw_ops.RaggedFillEmptyRows(
            value_rowids=tf.constant([0, 2], tf.int64),
            values=x[0, :2],
            nrows=tf.constant(3, tf.int64),
            default_value=9.0,
        )
        return {"y": filled[1]}

    save("new_op", serve, rows())


def cudnn():
    # Only for GPUs.
    def serve(x):
        given = tf.reshape(x[:1, :2], [1, 1, 2])
        state, lengths = tf.zeros([1, 1, 2]), tf.constant([1])
        run = tf.raw_ops.CudnnRNNV3(
            input=given,
            input_h=state,
            input_c=state,
            params=tf.zeros([48]),
            sequence_lengths=lengths,
            is_training=False,
        )
        return {"y": run[0]}

    save("cudnn", serve, rows())


def segment_max(x):
    return tf.raw_ops.SegmentMaxV2(data=x, segment_ids=tf.zeros([2], tf.int32), num_segments=1)


def no_kernel():
    save("no_kernel", lambda x: {"y": segment_max(x[:2])}, rows())


def no_kernel_in_a_branch():
    # Only taken when the sum is below zero, which no test's input has.
    save("no_kernel_in_a_branch", lambda x: {"y": tf.cond(tf.reduce_sum(x) < 0.0, lambda: segment_max(x[:2]),
         lambda: x[:1])}, rows())  # fmt: skip


def dead_function():
    # The function lies in the library and nothing names it.
    save("dead", lambda x: {"y": segment_max(x[:2])}, rows())
    other = read("dead")
    plain("dead_function")
    mine = read("dead_function")
    wanted = next(f for f in other.meta_graphs[0].graph_def.library.function
                  if any(n.op == "SegmentMaxV2" for n in f.node_def))  # fmt: skip
    copied = mine.meta_graphs[0].graph_def.library.function.add()
    copied.CopyFrom(wanted)
    copied.signature.name = "nobody_calls_this"
    write("dead_function", mine)
    shutil.rmtree(OUT / "dead")


def index_type():
    one = tf.constant(1, tf.int64)
    save("index_type", lambda x: {"y": tf.raw_ops.TopKV2(input=x, k=1, index_type=tf.int64)[1] + one}, rows())


def refused_index():
    save("refused_index", lambda x: {"y": tf.raw_ops.UnsortedSegmentSum(data=x[:1], segment_ids=tf.constant([0],
         tf.int16), num_segments=1)}, rows())  # fmt: skip


def refused_string():
    save("refused_string", lambda x: {"y": tf.raw_ops.AsString(input=tf.as_string(x))}, rows())


def ignored_attribute():
    ignoring = {"indices": [[99]], "bad_indices_policy": "IGNORE"}
    save("ignored_attribute", lambda x: {"y": tf.raw_ops.GatherNd(params=x, **ignoring)}, rows())


def compiled():
    model = Model()
    inner = tf.function(lambda x: tf.nn.relu(x @ model.w), jit_compile=True)
    save("compiled", lambda x: {"y": inner(x)}, rows(), model)


def compiled_without_cpu_kernel():
    inner = tf.function(segment_max, jit_compile=True)
    save("compiled_without_cpu_kernel", lambda x: {"y": inner(x[:2])}, rows())


def v1(name="v1", min_consumer=0, bad=()):
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        x = tf.compat.v1.placeholder(FLOAT, [None, 4], name="x")
        w = tf.compat.v1.get_variable("w", initializer=tf.ones([4, 3]), use_resource=False)
        y = tf.nn.relu(x @ w)
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.saved_model.simple_save(session, str(OUT / name), {"x": x}, {"y": y})
    model = read(name)
    versions = model.meta_graphs[0].graph_def.versions
    versions.min_consumer = max(versions.min_consumer, min_consumer)
    versions.bad_consumers.extend(bad)
    write(name, model)


def v2(name, min_consumer=0, bad=()):
    plain(name)
    model = read(name)
    versions = model.meta_graphs[0].graph_def.versions
    versions.min_consumer = max(versions.min_consumer, min_consumer)
    versions.bad_consumers.extend(bad)
    write(name, model)


def other_variables(name, model):
    """The graph of plain with the variables of another model."""
    plain(name)
    save("other", lambda x: {"y": x}, rows(), model)
    shutil.rmtree(OUT / name / "variables")
    shutil.move(OUT / "other" / "variables", OUT / name / "variables")
    shutil.rmtree(OUT / "other")


def flipped_bit():
    plain("flipped_bit")
    (data,) = (OUT / "flipped_bit" / "variables").glob("variables.data-*")
    content = bytearray(data.read_bytes())
    content[5] ^= 4
    data.write_bytes(content)


def read(name):
    model = saved_model_pb2.SavedModel()
    model.ParseFromString((OUT / name / "saved_model.pb").read_bytes())
    return model


def write(name, model):
    (OUT / name / "saved_model.pb").write_bytes(model.SerializeToString())


ALL = {
    "plain": plain,
    "conv": conv,
    "table": table,
    "mapped": mapped,
    "keras": keras,
    "archive.keras": keras_file,
    "renamed_signature": lambda: plain("renamed_signature", "score"),
    "new_op": new_op,
    "cudnn": cudnn,
    "no_kernel": no_kernel,
    "no_kernel_in_a_branch": no_kernel_in_a_branch,
    "dead_function": dead_function,
    "index_type": index_type,
    "refused_index": refused_index,
    "refused_string": refused_string,
    "ignored_attribute": ignored_attribute,
    "compiled": compiled,
    "compiled_without_cpu_kernel": compiled_without_cpu_kernel,
    "v1": v1,
    "v1_min_consumer": lambda: v1("v1_min_consumer", min_consumer=99999),
    "v1_bad_consumer": lambda: v1("v1_bad_consumer", bad=[1395]),
    "v2_min_consumer": lambda: v2("v2_min_consumer", min_consumer=99999),
    "v2_bad_consumer": lambda: v2("v2_bad_consumer", bad=[1395]),
    "other_dtype": lambda: other_variables("other_dtype", Model(tf.float64)),
    "other_name": lambda: other_variables("other_name", Model(name="kernel")),
    "other_shape": lambda: other_variables("other_shape", Model(shape=(3, 4))),
    "flipped_bit": flipped_bit,
}

written = []
for name, build in ALL.items():
    if sys.argv[2:] and name not in sys.argv[2:]:
        continue
    try:
        build()
        written.append(name)
    except Exception as error:
        shutil.rmtree(OUT / name, ignore_errors=True)
        print(f"{name}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
print(json.dumps(written))
