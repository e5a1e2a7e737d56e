"""What locate-then-edit methods share: contexts, keys, target values, moments, solvers.

Each module holds functions on tensors; none of them writes a weight. An editor's file reads top to
bottom:

```
contexts  where the prompt is met            [texts in front of the prompt]
keys      what the edited projection sees    k = input of W at the subject's last token
values    what it should answer              v* found by gradient descent on the output
moments   what must not move                 C = E[k k^T] on ordinary text
solve     the update                         pure float64 functions of (k, v*, C)
spectrum  where ordinary keys hardly reach   null space of C; what is decomposed is kept on disk
memory    what earlier edits wrote           past keys, at most f x f numbers
joint     the update of several edits        pure float64 functions of (K, R, C, memory)
```
"""
