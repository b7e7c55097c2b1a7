"""The quantised weights of ONNX Runtime: integers, scales and zero points, in tensors apart.

blockwise   a row in groups, each with a scale: MatMulNBits, GatherBlockQuantized, DequantizeLinear
affine      one scale for all, or one for each column: dynamic int8, DequantizeLinear
bnb4        four-bit floats, a scale for each group: MatMulBnb4

An encoding's block is a whole row: its integers, behind them its scales and its zero points.
`split` takes them apart. Written values are, rounded to the nearest, those of ONNX Runtime's own
quantisers to the bit.
"""
