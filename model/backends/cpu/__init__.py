"""Our kernels for a CPU: text in LLVM's language, compiled for the machine at the first start (`jit`).

`linears`, `attention`, `rows` and `low_rank` each hold the text of their kernels (files that end in `_ir`, written with
`ir`) and what calls them with tensors.
"""
