"""The pattern set on what real TensorFlow says of ops that it cannot run, in every form, and of what it can."""

from __future__ import annotations

import socket

import pytest

from service.sources.lines import kinds
from tests.real.parts.tensorflow import ENVIRONMENTS, run_in
from tests.unit.sources.test_lines import TENSORFLOW

pytestmark = pytest.mark.real

BROKEN = """
import sys
import tensorflow as tf

def told(run):
    try:
        run()
    except Exception as error:
        print(error, end="\\n====\\n", file=sys.stderr)

def cudnn():
    zeros = tf.zeros
    return tf.raw_ops.CudnnRNN(input=zeros([1, 1, 1]), input_h=zeros([1, 1, 1]), input_c=zeros([0]), params=zeros([4]))

def placed():
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        session.run(cudnn().output)

def unknown():
    graph = tf.compat.v1.GraphDef()
    node = graph.node.add()
    node.name, node.op = "node", "FancyOp"
    with tf.Graph().as_default():
        tf.import_graph_def(graph)

told(cudnn)
told(placed)
told(unknown)
# For a device that the op has no kernel of: here the compiler's.
told(lambda: tf.function(tf.strings.lower, jit_compile=True)(tf.constant("A")))
"""
RUNS = """
import tensorflow as tf

@tf.function
def double(x):
    return 2 * x

print(double(tf.constant([1.0, 2.0])), tf.matmul(tf.ones([2, 2]), tf.ones([2, 2])))
"""
SAYS_ALL = {"TF_CPP_MIN_LOG_LEVEL": "0"}


@pytest.mark.parametrize("version", ENVIRONMENTS)
def test_every_form_in_which_tensorflow_misses_a_kernel_is_recognised_with_the_op(version: str) -> None:
    done = run_in(version, BROKEN, environment=SAYS_ALL)
    assert done.returncode == 0, done.stderr[-2000:]
    told = kinds(TENSORFLOW.patterns)
    found = [{told.of_line(line) for line in part.split("\n")} - {None} for part in done.stderr.split("====\n")]
    eager, placed, unknown, compiled = found[:4]
    assert "missing-opkernel CudnnRNN" in eager
    assert "missing-opkernel CudnnRNN" in placed
    assert "missing-opkernel FancyOp" in unknown
    assert any(str(kind).startswith("missing-opkernel ") for kind in compiled)
    assert socket.gethostname() not in str(found)


@pytest.mark.parametrize("version", ENVIRONMENTS)
def test_what_tensorflow_says_when_all_is_well_is_of_no_kind(version: str) -> None:
    done = run_in(version, RUNS, environment=SAYS_ALL)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = (done.stdout + done.stderr).split("\n")
    assert len(lines) > 2
    assert [line for line in lines if kinds(TENSORFLOW.patterns).of_line(line)] == []
