"""From a checkpoint to a bundle that has passed the gate.

1. `writer` makes the bundle in fp32: `onnx` traces the net, `parity` compares the graph with the net on real fields.
2. `forms` makes that bundle again in 16 bits (`half`) or 8 (`quantize`); `tensorrt` makes engines of it.
3. `gate` measures the net, the fp32 graph and the form side by side, and keeps the better one. `gate.judged` goes
   through all three steps for what a user asked for.

Nothing is imported here, so that one part does not load them all.
"""
