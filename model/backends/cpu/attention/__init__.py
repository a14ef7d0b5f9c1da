"""The text of the kernel for attention over the paged cache: a few query rows of one sequence at a time.

A row's result depends on that row and its keys alone: keys are walked 64 at a time from position 0, with the softmax's
maximum and sum carried along, for a decode as for a row of a chunk. What a row does not see has weight 0 and changes no
bit. So a prompt in chunks of any size, behind cached blocks, and its tokens decoded one by one give the same numbers.
With a window the walk begins at the 64 keys among which the first row's window begins, still counted from position 0.

`kernel` says what distinguishes one kernel from another, `keys` writes what makes scores, `softmax`
what makes weights of them, `values` what adds values up, and `module` what walks a sequence and calls them all.
"""
