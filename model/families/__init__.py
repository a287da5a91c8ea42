"""Model families: each file has `init`, `forward` and `extend` of one."""
