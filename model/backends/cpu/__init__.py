"""The CPU's own kernels: their text is LLVM's language, compiled for the machine at the first start (`jit`).

`linears`, `attention`, `rows` and `low_rank` each hold the text of their kernels (files that end in `_ir`, written with
`ir`) and what calls them with tensors.
"""
