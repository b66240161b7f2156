"""A student is written as ONNX for one of two purposes."""

PURPOSES = {
    "speed": "INT8 weights, run in integers (the default for students of protocol integer)",
    "size": "packed weights, the smallest file, run in floating point",
}
